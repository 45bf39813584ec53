"""Two processes of one job, each with two devices, on two cores: none waits where a limit of time runs."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from sdjax.tasks.parameters import understand
from tests.devices.test_layouts import free_port
from tests.scripts import ROOT

STEPS, LIMIT = 4, 240  # seconds
SLOW = """
import os, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from sdjax.commands import train_diffusion
from sdjax.commands.command_line import run
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.loop import _Loop
from sdjax.training.run import Run
import jax

LONG = 35  # seconds: collectives on CPUs give up after 30
waiting = {name for name in sys.argv.pop(1).split(",") if name}

def late(owner, name, process):
    call = getattr(owner, name)
    def called(self, *arguments):
        if name in waiting and jax.process_index() == process:
            waiting.remove(name)
            time.sleep(LONG)
        return call(self, *arguments)
    setattr(owner, name, called)

late(Run, "save_sheet", 0)
late(Checkpoints, "wait", 0)
late(Checkpoints, "restore", 0)
late(_Loop, "begin", 1)
run(train_diffusion.main, train_diffusion.Options)
"""


def start(place, out, slow, *more):
    """Both processes' (status, standard error)."""
    where = f"127.0.0.1:{free_port()}"
    options = {"--model": "model", "--data": "pictures", "--out": out, "--steps": STEPS, "--batch-size": 8}
    options |= {"--ema-decay": 0, "--log-every": 1, "--coordinator": where, "--num-processes": 2}
    words = [str(word) for pair in options.items() for word in pair] + [str(word) for word in more]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW, slow, *words, "--process-id", str(i)],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    try:
        said = [child.communicate(timeout=LIMIT) for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, errors) for child, (_, errors) in zip(children, said, strict=True)]


@pytest.mark.parametrize("layout", ["fsdp", pytest.param("pmap", marks=pytest.mark.slow)])
def test_samples_in_the_middle_and_at_the_end(place, tmp_path, layout):
    found = start(place, tmp_path, "", "--parallel", layout, "--sample-every", 3, "--validation", 4)
    assert [status for status, _ in found] == [0, 0], found
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"3.png", "4.png"}
    text = Image.open(tmp_path / "samples" / "3.png").text["parameters"]
    found, rest = understand(text)
    assert (found["steps"], found["sampler"], found["syntax"]) == (20, "ddim", "plain")
    assert rest["Training step"] == "3" and found["prompt"] == rest["Prompts"].split("\n")[0] != ""
    assert (tmp_path / "export" / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["save_sheet", "wait", "restore", "begin"])
def test_what_one_process_takes_long_over(place, tmp_path, slow):
    found = start(place, tmp_path, slow, "--parallel", "fsdp", "--sample-every", 2, "--checkpoint-every", 2)
    assert [status for status, _ in found] == [0, 0], found
