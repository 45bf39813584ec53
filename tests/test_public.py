"""The public names: what sdjax says it has, it has, and its stub says the same to editors and type checkers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sdjax

FOLDER = Path(sdjax.__file__).parent
MODULES = ("sampling", "pictures")


def stub() -> tuple[dict[str, str], list[str]]:
    """({public name: the module that the stub takes it from}, the stub's own list of names)."""
    homes, listed = {}, []
    for node in ast.parse((FOLDER / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names), "only `x as x` exports a name from a stub"
            homes |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign):
            listed = ast.literal_eval(node.value)
    return homes, listed


def test_the_stub_names_what_is_public():
    homes, listed = stub()
    assert set(homes) == set(listed) == set(sdjax.__all__)
    assert len(sdjax.__all__) == len(set(sdjax.__all__)) and len(listed) == len(set(listed))
    for name, module in homes.items():
        value = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
        assert getattr(sdjax, name) is value, name
    assert set(sdjax.__all__) <= set(dir(sdjax))
    assert (FOLDER / "py.typed").is_file()
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        sdjax.nothing_of_this_name  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_have_what_they_list(name):
    module = importlib.import_module(f"sdjax.{name}")
    assert getattr(sdjax, name) is module
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(imported) == sorted(module.__all__), "only names that are defined elsewhere, and all of them"
    assert all(hasattr(module, public) for public in module.__all__)


def test_sampling_is_what_is_promised():
    promised = "plan start sample Row Sampler slerp eps_to_x0 v_to_x0 at_timesteps with_guidance to_denoiser"
    assert set(promised.split()) <= set(sdjax.sampling.__all__)
    assert sdjax.sampling.samplers is sdjax.samplers


def test_import_brings_in_nothing_big():
    heavy = "jax", "flax", "numpy", "PIL", "transformers"
    script = f"import sys, sdjax; dir(sdjax); assert sys.modules.keys().isdisjoint({heavy})"
    subprocess.run([sys.executable, "-c", script], check=True)
