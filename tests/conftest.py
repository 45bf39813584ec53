import gc
import json
import os
import runpy
import shutil
import subprocess
import sys

import jax
import pytest

import sdjax
from sdjax.devices.host import crowded, resident, trim_memory
from sdjax.text.bpe import train_bpe
from tests.narrow import random_model_params
from tests.scripts import CONFIG, ROOT
from tests.text.test_tokenizer import captions

#: XLA's passes for the CPU that cost as much time as the rest of a compilation, off
QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


def pytest_configure(config):
    """For this process and all that it starts. Parity and the slow tests run what users run.

    XLA ends a process that names a flag which it does not know, and versions differ: each is tried in one of its own.
    """
    if "not parity" in config.option.markexpr and not os.environ.get("SDJAX_TESTS_QUICK"):
        given = os.environ.get("XLA_FLAGS", "")
        for flag in QUICK:
            trial = [sys.executable, "-c", "import jax; jax.devices()"]
            environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
            if not subprocess.run(trial, env=environment, capture_output=True).returncode:
                given += f" {flag}"
        os.environ |= {"XLA_FLAGS": given, "SDJAX_TESTS_QUICK": "1"}


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Lets go of compiled programs after a module, where the process has grown above 4 GB, else it reaches 10, or
    holds half of the memory maps that it may."""
    yield
    if resident() > 4e9 or crowded():
        jax.clear_caches()
        gc.collect()
        trim_memory()


@pytest.fixture(scope="module")
def quick_compile():
    """XLA without its expensive passes: a third of the time for tests that compile more than they run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `model`, `pictures`, and `file`, which is in the way."""
    place = tmp_path_factory.mktemp("scripts")
    tokenizer = train_bpe(captions(), CONFIG.text.vocab_size, place / "tokenizer")
    sdjax.save(sdjax.StableDiffusion(CONFIG, random_model_params(CONFIG), tokenizer), place / "model")
    emoji = ROOT / "tests" / "data" / "emoji300"
    lines = (emoji / "metadata.jsonl").read_text().splitlines()[:16]
    (place / "pictures").mkdir()
    for line in lines:
        shutil.copy(emoji / json.loads(line)["file_name"], place / "pictures")
    (place / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    (place / "file").write_text("mine")
    return place


@pytest.fixture
def script(place, monkeypatch):
    """script("train/train_vae.py", "--steps", 2): runs it in `place` and returns its exit status."""

    def script(name, *arguments):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setenv("SDJAX_CACHE", "off")  # JAX's settings are the whole process'
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    return script
