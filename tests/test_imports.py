"""Imports go downwards only: each file may import from lower floors, and sideways only where drawn here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdjax

ROOT = Path(sdjax.__file__).parent

#: the rooms (packages, and the modules beside them) from the ground up; a room may import from lower floors, and from
#: rooms beside it as long as there is no circle
FLOORS = (
    ("errors", "checks", "types"),
    ("files", "diffusion", "nn", "formats", "text", "devices"),
    ("networks", "families", "image"),
    ("weights", "data"),
    ("model",),
    ("conditioning",),
    ("tasks", "adapters"),
    ("training", "web"),
    ("commands",),
    ("sampling", "pictures"),
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of sdjax that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdjax":
            base = node.module.removeprefix("sdjax").lstrip(".")
            for alias in node.names:
                nested = ".".join(filter(None, (base, alias.name)))
                place = ROOT / nested.replace(".", "/")
                found.add(nested if place.with_suffix(".py").is_file() or place.is_dir() else base)
    return found - {""}


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """Names that import each other in a circle, if there are any."""
    left = {name: set(targets) & set(arrows) - {name} for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets]:
        left = {name: targets - set(ends) for name, targets in left.items() if name not in ends}
    return sorted(left) or None


MODULES = {
    module_name(path): imports(path)
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT or path.stem in ("errors", "checks", "types", "files", "sampling", "pictures")
}
room = lambda module: module.split(".")[0]


def test_imports_go_down():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    assert {room(module) for module in MODULES} == set(floor)
    assert not [
        f"{module} imports {name}"
        for module, names in MODULES.items()
        for name in names
        if floor[room(name)] > floor[room(module)]
    ]


def test_no_import_goes_in_a_circle():
    rooms = {}
    for module, names in MODULES.items():
        rooms.setdefault(room(module), set()).update(map(room, names))
    assert circle(rooms) is None
    for name in rooms:
        assert circle({module: names for module, names in MODULES.items() if room(module) == name}) is None


@pytest.mark.parametrize("folder", ["sdjax", "train", "sample"])
def test_every_file_is_short(folder):
    files = (ROOT.parent / folder).rglob("*.py")
    assert not {path.name: n for path in files if (n := len(path.read_text().splitlines())) > 350}


def late_imports() -> set[str]:
    """Modules that are imported inside of functions, and some names that are none."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        base = [node.module] if isinstance(node, ast.ImportFrom) else []
                        found |= {*base, *(".".join([*base, alias.name]) for alias in node.names)}
    return found


def test_nothing_imported_late_has_programs_compiled_again():
    """A module may add to what JAX' caches go by, as Pallas does: then every program made before it is made anew."""
    script = """
import importlib, sys, jax
import sdjax.tasks.image_to_image, sdjax.training.loop, sdjax.tasks.program, sdjax.tasks.attention_maps
import sdjax.tasks.safety
traced = []
function = jax.jit(lambda x: traced.append(x) or x)
function(1.0)
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    function(1.0)
    assert len(traced) == 1, name
"""
    late = late_imports()
    assert {"jax", "orbax.checkpoint", "transformers"} <= late
    subprocess.run([sys.executable, "-c", script, *sorted(late)], check=True)
