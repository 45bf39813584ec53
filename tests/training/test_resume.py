"""The training script killed, told to stop, and out of disk: in the end it is as if nothing had been (slow)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.scripts import ROOT

pytestmark = pytest.mark.slow
STEPS = 24


def command(out, *more, name="train_diffusion"):
    return [
        sys.executable,
        ROOT / "train" / f"{name}.py",
        "--model",
        "model",
        "--data",
        "pictures",
        "--out",
        out,
        "--steps",
        STEPS,
        "--batch-size",
        8,
        "--log-every",
        1,
        "--checkpoint-every",
        1,
        "--sample-every",
        10,
        "--learning-rate",
        1e-3,
        "--warmup",
        4,
        "--validation",
        4,
        "--validate-every",
        8,
        *more,
    ]


def start(place, out, *more, **name):
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        list(map(str, command(out, *more, **name))),
        cwd=place,
        env=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(place, out, *more, **name):
    child = start(place, out, *more, **name)
    said, errors = child.communicate()
    assert child.returncode == 0, errors
    return said


def records(out):
    """step -> its last record, without the time that it took."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: {k: v for k, v in line.items() if k != "images_per_second"} for line in lines}


def exported(out):
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted((out / "export").rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def lines(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_steps(child, out, more):
    before = lines(out)
    while child.poll() is None and lines(out) < before + more:
        time.sleep(0.01)


def same(a, b):
    assert records(a) == records(b) and list(records(a)) == list(range(1, STEPS + 1))
    ours, theirs = exported(a), exported(b)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.view(np.uint8), theirs[name].view(np.uint8), err_msg=name)
    assert {path.name for path in (a / "samples").iterdir()} == {"10.png", "20.png", "24.png"}
    debris = [path for path in a.rglob("*") if "tmp" in path.name or path.name.startswith((".", "damaged"))]
    assert not debris and not (a / "PREEMPTED").exists()


@pytest.fixture(scope="module")
def whole(place):
    """A run that nobody disturbed."""
    finish(place, place / "whole")
    return place / "whole"


def test_killed_six_times(place, whole):
    out, rng = place / "killed", np.random.default_rng(0)
    for _ in range(6):
        child = start(place, out)
        wait_for_steps(child, out, 2)
        time.sleep(rng.uniform(0, 0.4))  # in the middle of steps and of checkpoints, of which there is one a step
        child.kill()
        assert child.wait() in (-signal.SIGKILL, 0)
        child.communicate()
    finish(place, out)
    same(out, whole)


def test_a_lora_killed_four_times(place):
    """Beside a frozen model, with a prior that is drawn first; a kill while that is drawn too."""
    flags = ("--rank", 2, "--text-learning-rate", 1e-3, "--prior-prompt", "an apple", "--prior-images", 20)
    name, rng = {"name": "train_lora"}, np.random.default_rng(0)
    finish(place, place / "lora" / "style", *flags, **name)
    out = place / "killed-lora" / "style"
    child = start(place, out, *flags, **name)
    while child.poll() is None and not [*out.glob("prior/*.png")]:
        time.sleep(0.01)
    child.kill()
    child.communicate()
    for _ in range(3):
        child = start(place, out, *flags, **name)
        wait_for_steps(child, out, 2)
        time.sleep(rng.uniform(0, 0.4))
        child.kill()
        child.communicate()
    finish(place, out, *flags, **name)
    assert records(out) == records(place / "lora" / "style") and list(records(out)) == list(range(1, STEPS + 1))
    ours, theirs = exported(out), exported(place / "lora" / "style")
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for one, tensor in ours.items():  # a header's metadata are in another order each time
        assert tensor.tobytes() == theirs[one].tobytes(), one
    last = "prior/00019.png"
    assert (out / last).read_bytes() == (place / "lora" / "style" / last).read_bytes()


def test_told_to_stop_three_times(place, whole):
    """Before the first step, in the midst, and by Ctrl-C."""
    out = place / "stopped"
    for name, steps in ((signal.SIGTERM, 0), (signal.SIGTERM, 3), (signal.SIGINT, 3)):
        child = start(place, out)
        if steps:
            wait_for_steps(child, out, steps)
        else:
            while not (out / "cache").exists():
                time.sleep(0.01)
        child.send_signal(name)
        status, said = child.wait(), child.communicate()[1]
        assert status == (130 if name == signal.SIGINT else 0), said
        if steps:
            assert f"stopped after step {max(records(out))}, saved; the same command goes on" in said
        assert (out / "PREEMPTED").is_file()
        if steps:
            newest = max(int(path.name) for path in (out / "checkpoints").iterdir())
            assert newest == max(records(out))
    finish(place, out)
    same(out, whole)


def test_a_disk_that_fills_up(place, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        child = start(place, disk / "run")
        wait_for_steps(child, disk / "run", 4)
        room = shutil.disk_usage(disk).free
        Path(disk / "filler").write_bytes(bytes(max(0, room - 20_000)))
        _, errors = child.communicate()
        last = errors.rstrip("\n").split("\n")[-1]
        assert child.returncode == 2 and last.startswith("error: ") and "No space left on device" in last
        assert "Traceback" not in errors
        assert not [path for path in (disk / "run").rglob("*") if "tmp" in path.name]
        (disk / "filler").unlink()
        finish(place, disk / "run")
        same(disk / "run", whole)
    finally:
        subprocess.run(["umount", disk], check=True)
