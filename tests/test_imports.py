"""Imports go downwards only: each file may import from lower floors, and sideways only where drawn here."""

import ast
import subprocess
import sys
from pathlib import Path

import sdjax

ROOT = Path(sdjax.__file__).parent

# floor of every module; a package's files are one floor unless named themselves
FLOORS = {
    "errors": 0,
    "atomic": 1,
    "config": 0,
    "types": 0,
    "cli": 1,
    "schedule": 1,
    "nn": 1,
    "parallel": 1,
    "denoise": 2,
    "tables": 2,
    "sampler": 3,
    "text": 2,
    "prompt": 2,
    "image": 2,
    "parameters": 2,
    "grid": 2,
    "loss": 2,
    "quality": 1,
    "measure": 1,
    "autoencoder": 3,
    "data": 3,
    "weights": 3,
    "train_state": 2,
    "train_options": 4,
    "report": 3,
    "run": 4,
    "checkpoint": 3,
    "model": 4,
    "embedding": 5,
    "maps": 5,
    "safety": 5,
    "options": 2,
    "sample_options": 4,
    "watermark": 3,
    "stages": 5,
    "engine": 6,
    "generate": 7,
    "program": 8,
    "cache": 5,
    "batch": 5,
    "loop": 6,
}
NN = {"backends": 0, "flash": 0, "tiles": 0, "convolution": 1, "layers": 2, "attention": 3, "unet": 4, "vae": 4,
      "clip": 4, "discriminator": 4, "lpips": 0}  # within nn/
WEIGHTS = {"names": 0, "configs": 0, "files": 0, "convert": 1, "machine": 1, "pickles": 2, "tensors": 3, "folder": 4,
           "single": 4, "clip": 5, "hub": 5, "lpips": 4}  # within weights/
DATA = {"picture": 0, "tars": 1, "bad": 0, "listing": 2, "buckets": 3, "source": 4, "order": 0}  # within data/


def floor(module: str) -> tuple[int, int]:
    """sdjax module name without the prefix -> (floor, place within its package)."""
    head, _, tail = module.partition(".")
    inner = {"nn": NN, "weights": WEIGHTS, "data": DATA}.get(head, {})
    return FLOORS[head], inner[tail] if tail else -1


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdjax":
            base = node.module.removeprefix("sdjax").lstrip(".")
            for alias in node.names:
                nested = ".".join(filter(None, (base, alias.name)))
                is_module = (ROOT / (nested.replace(".", "/") + ".py")).is_file()
                found.add(nested if is_module else base)
    return found - {""}


def test_imports_go_down():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "__init__.py":
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        wrong += [f"{module} imports {name}" for name in imports(path) if floor(name) >= floor(module)]
    assert not wrong


def test_every_file_is_short():
    long = {path.name: n for path in ROOT.rglob("*.py") if (n := len(path.read_text().splitlines())) > 350}
    assert not long


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
import sdjax.generate, sdjax.loop, sdjax.program, sdjax.maps, sdjax.safety
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
