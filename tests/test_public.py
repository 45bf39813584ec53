"""The public names: what sdjax says it has, it has, and its stub says the same to editors and type checkers."""

import ast
import functools
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import sdjax
from sdjax.tasks.options import OPTIONS

FOLDER = Path(sdjax.__file__).parent
MODULES = ("sampling", "pictures")


TASKS = ("txt2img", "hires", "upscale", "img2img", "inpaint", "outpaint")


@functools.cache
def stub() -> list[ast.stmt]:
    return ast.parse((FOLDER / "__init__.pyi").read_text(encoding="utf-8")).body


def test_the_stub_names_what_is_public():
    found = [node for node in stub() if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname: node.module for node in found for alias in node.names if alias.asname}
    assert all(alias.asname in (None, alias.name) for node in found for alias in node.names)
    listed = next(ast.literal_eval(node.value) for node in stub() if ast.unparse(node).startswith("__all__"))
    assert {*homes, *TASKS} == set(listed) == set(sdjax.__all__)
    assert len(sdjax.__all__) == len(set(sdjax.__all__)) and len(listed) == len(set(listed))
    for name, module in homes.items():
        value = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
        assert getattr(sdjax, name) is value, name
    assert set(sdjax.__all__) <= set(dir(sdjax))
    assert (FOLDER / "py.typed").is_file()
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        sdjax.nothing_of_this_name  # noqa: B018


def test_the_stub_s_tasks_are_the_tasks():
    """What a type checker knows of a task is what `takes_options` makes of it: its own arguments, then OPTIONS."""
    (options,) = (node for node in stub() if isinstance(node, ast.ClassDef))
    stated = {field.target.id: ast.unparse(field.annotation) for field in options.body}
    known = {"Any": Any, "Sequence": Sequence, "Callable": Callable, "Path": Path}
    types = {option.name: option.type for option in OPTIONS if option.name != "output"}
    assert set(types) == set(stated)
    for name, kind in types.items():
        assert (stated[name] if isinstance(kind, str) else eval(stated[name], known)) == kind, name
    outputs = set()
    for node in stub():
        if isinstance(node, ast.FunctionDef):
            real = inspect.signature(getattr(sdjax, node.name)).parameters
            own = [name for name in real if name not in {option.name for option in OPTIONS}]
            assert [argument.arg for argument in node.args.args] == own and node.args.kwarg.arg == "options"
            assert [argument.arg for argument in node.args.kwonlyargs] == ["output"]
            defaults = [real[name].default for name in own if real[name].default is not inspect.Parameter.empty]
            assert list(map(ast.literal_eval, node.args.defaults)) == defaults
            outputs.add((node.name, ast.unparse(node.args.kwonlyargs[0].annotation)))
    assert outputs == {(task, kind) for task in TASKS for kind in ("_Pil", "_Array", "_Walk")}


def annotated(module, name: str) -> list[str]:
    """The arguments and results of a public function, or of a class' methods, that say no type."""
    value = getattr(module, name)
    methods = vars(value).items() if inspect.isclass(value) else []
    functions = [f for key, f in methods if inspect.isfunction(f) and (key[0] != "_" or key == "__call__")]
    lacking = []
    for function in [value] if inspect.isfunction(value) else functions:
        if function.__module__.startswith(("sdjax", "tests")):
            signature = inspect.signature(function)
            asked = [p for p in signature.parameters.values() if p.name != "self"]
            lacking += [f"{name}.{p.name}" for p in asked if p.annotation is inspect.Parameter.empty]
            lacking += [f"{name} ->"] if signature.return_annotation is inspect.Signature.empty else []
    return lacking


def test_every_public_function_is_annotated():
    modules = [sdjax, *(getattr(sdjax, name) for name in MODULES)]
    found = [text for module in modules for name in module.__all__ for text in annotated(module, name)]
    assert not [text for text in found if text.split(".")[0].split(" ")[0] not in TASKS]  # these are in the stub
    assert annotated(importlib.import_module("tests.test_public"), "probe") == ["probe.x", "probe ->"]


def probe(x, y: int = 0): ...


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
