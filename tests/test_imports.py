"""Imports go downwards only: each file may import from lower floors, and sideways only where drawn here."""

import ast
import subprocess
import sys
from pathlib import Path

import sdjax

ROOT = Path(sdjax.__file__).parent

# floor of every module, and its place on it
FLOORS = {
    "errors": (0, -1),
    "families.sd": (0, -1),
    "types": (0, -1),
    "commands.command_line": (1, -1),
    "devices.cost": (1, -1),
    "devices.layouts": (1, -1),
    "diffusion.schedule": (1, -1),
    "files": (1, -1),
    "image.quality": (1, -1),
    "networks.lpips.network": (1, 0),
    "nn.kernels.backends": (1, 0),
    "nn.kernels.flash": (1, 0),
    "nn.tiles": (1, 0),
    "nn.kernels.convolution": (1, 1),
    "nn.layers": (1, 2),
    "nn.kernels.attention": (1, 3),
    "networks.clip.network": (1, 4),
    "networks.unet.network": (1, 4),
    "networks.vae.network": (1, 4),
    "training.discriminator": (1, 4),
    "commands.grid": (2, -1),
    "diffusion.guidance": (2, -1),
    "diffusion.tables": (2, -1),
    "image.parameters": (2, -1),
    "image.pixels": (2, -1),
    "tasks.options": (2, -1),
    "text.prompt": (2, -1),
    "text.tokenizer": (2, -1),
    "training.diffusion": (2, -1),
    "training.state": (2, -1),
    "diffusion.sampler": (3, -1),
    "image.watermark": (3, -1),
    "training.autoencoder": (3, -1),
    "training.checkpoint": (3, -1),
    "training.report": (3, -1),
    "weights": (3, -1),
    "data.bad": (3, 0),
    "data.order": (3, 0),
    "data.picture": (3, 0),
    "formats.mapped": (3, 0),
    "networks.rows": (3, 0),
    "weights.folder_json": (3, 0),
    "data.tars": (3, 1),
    "formats.unpickler": (3, 1),
    "weights.convert": (3, 1),
    "data.listing": (3, 2),
    "formats.torch_files": (3, 2),
    "data.buckets": (3, 3),
    "formats.tensors": (3, 3),
    "data.source": (3, 4),
    "weights.folder": (3, 4),
    "weights.lpips": (3, 4),
    "weights.single": (3, 4),
    "weights.clip": (3, 5),
    "weights.hub": (3, 5),
    "data": (3, 9),
    "commands.generate_options": (4, -1),
    "model.functions": (4, -1),
    "training.options": (4, -1),
    "training.run": (4, -1),
    "adapters.embedding": (5, -1),
    "commands.batch": (5, -1),
    "tasks.attention_maps": (5, -1),
    "tasks.safety": (5, -1),
    "tasks.stages": (5, -1),
    "training.cache": (5, -1),
    "tasks.engine": (6, -1),
    "training.loop": (6, -1),
    "tasks.image_to_image": (7, -1),
    "tasks.program": (8, -1),
}


def floor(module: str) -> tuple[int, int]:
    return FLOORS[module]


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
