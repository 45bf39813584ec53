"""What loading a full-size float16 SD 1.5 file costs, beside diffusers: memory at its peak, and time.

    pytest -m slow tests/parity/test_load_cost.py -s

takes some 3 minutes, 5 GB of memory and 5 GB of disk. The weights are random. Every figure is of a fresh process with
the library already imported and the file in the system's cache; memory is the process' peak resident size (VmHWM)
above that of a process that imports jax and starts its backend, or torch and diffusers.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sdjax.families.sd import SD15
from sdjax.text.tokenizer import clip_tokenizer, write_tokenizer
from sdjax.weights.folder_json import folder_configs
from tests.narrow import file_tensors

pytestmark = [pytest.mark.parity, pytest.mark.slow]

MEASURE = """
import re, sys, time
from pathlib import Path
{imports}
peak = lambda: int(re.search("VmHWM:\\\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1]) * 1024
bare, begun = peak(), time.monotonic()
model = {load}
print("\\n", peak() - bare, time.monotonic() - begun)
"""
OURS = {"imports": "import jax; jax.devices()", "load": '__import__("sdjax").load(sys.argv[1])'}
TIMED = {"imports": "import sdjax; from sdjax import model", "load": "sdjax.load(sys.argv[1])"}
THEIRS = {
    "imports": "import torch; from diffusers import StableDiffusionPipeline",
    "load": "StableDiffusionPipeline.from_single_file(sys.argv[1], config=sys.argv[2], torch_dtype=torch.float16, "
    "local_files_only=True)",
}


def measure(how: dict, *paths) -> tuple[int, float]:
    """(peak bytes above the imports, seconds) of a fresh process."""
    command = [sys.executable, "-c", MEASURE.format(**how), *map(str, paths)]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    size, seconds = run.stdout.split()[-2:]
    return int(size), float(seconds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The configs and the tokenizer of SD 1.5, without weights: what diffusers wants to know besides the file."""
    path = tmp_path_factory.mktemp("sd15")
    for name, content in folder_configs(SD15).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content))
    write_tokenizer(clip_tokenizer(), SD15.text, path / "tokenizer")
    return path


@pytest.fixture(params=["safetensors", "ckpt"])
def file(request, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / f"sd15.{request.param}"
    draw = lambda shape: (
        (np.frombuffer(rng.bytes(2 * int(np.prod(shape))), np.uint16) & 0xBFFF)
        .view(  # below 2
            np.float16
        )
        .reshape(shape)
    )
    tensors = {name: draw(value.shape) for name, value in file_tensors(SD15).items()}
    if request.param == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": {name: torch.tensor(value) for name, value in tensors.items()}}, path)
    yield path
    path.unlink()


def test_memory_and_time(file, folder):
    size = file.stat().st_size
    more, _ = measure(OURS, file)
    ours = [measure(TIMED, file)[1]]
    their_memory, seconds = measure(THEIRS, file, folder)
    theirs = [seconds]
    ours.append(measure(TIMED, file)[1])
    theirs.append(measure(THEIRS, file, folder)[1])
    print(
        f"\n{file.name} of {size / 1e9:.3f} GB: sdjax.load takes {more / size:.2f} x the file above `import jax` and "
        f"{min(ours):.1f} s ({', '.join(f'{x:.1f}' for x in ours)}); diffusers {their_memory / size:.2f} x above its "
        f"imports and {min(theirs):.1f} s ({', '.join(f'{x:.1f}' for x in theirs)})"
    )
    assert more < 1.3 * size
