"""Batch runs: bookkeeping with a draw that paints its prompt and seed, then the script itself, killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdjax.commands.batch import run_batch
from sdjax.errors import SdjaxError
from sdjax.files import read_prompts
from tests.scripts import ROOT

PROMPTS = [f"prompt {i}" for i in range(11)]


def paint(prompts, seed, progress=None):
    """Pictures that depend on prompt, seed and place in the batch."""
    draws = [np.random.default_rng([*prompt.encode(), seed + k, k]) for k, prompt in enumerate(prompts)]
    return [Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)) for rng in draws]


def draw_to(out, prompts=PROMPTS, draw=paint, steps=20, size=4, **options):
    out.mkdir(exist_ok=True)
    describe = lambda i: f"{prompts[i]}\nSteps: {steps}, Seed: {100 + i}"
    return run_batch(draw, describe, prompts, out, {"steps": steps, "eta": None}, seed=100, size=size, **options)


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.png")}


def records(out):
    return [json.loads(line) for path in sorted(out.glob("manifest*.jsonl")) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The pictures of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    assert draw_to(out) == len(PROMPTS)
    return pictures(out)


def test_pictures_and_manifest(tmp_path, whole):
    calls = []
    assert draw_to(tmp_path, report=lambda *call: calls.append(call)) == 11
    assert pictures(tmp_path) == whole
    first, *rest = records(tmp_path)
    assert first == {"settings": {"steps": 20, "eta": None}} and len(rest) == 11
    assert rest[7] == {
        "image": 7,
        "file": "00007-seed107.png",
        "seed": 107,
        "prompt": "prompt 7",
        "bytes": len(whole["00007-seed107.png"]),
    }
    assert Image.open(tmp_path / "00007-seed107.png").text["parameters"] == "prompt 7\nSteps: 20, Seed: 107"
    assert calls[0] == (0, 11) and calls[-1] == (11, 11) and calls == sorted(calls)
    before = stamps(tmp_path)
    assert draw_to(tmp_path, draw=None) == 0 and stamps(tmp_path) == before


@pytest.mark.parametrize("stop_at", range(0, 11, 3))
def test_a_run_that_broke_off_goes_on(tmp_path, whole, monkeypatch, stop_at):
    """In the middle of writing batch stop_at // 4."""
    from sdjax.commands import batch

    def failing(image, path, text):
        if path.name.startswith(f"{stop_at:05d}"):
            raise KeyboardInterrupt
        return save(image, path, text)

    save = batch.save_png
    monkeypatch.setattr(batch, "save_png", failing)
    with pytest.raises(KeyboardInterrupt):
        draw_to(tmp_path)
    before = stamps(tmp_path)
    assert len(before) == stop_at and (tmp_path / "manifest.jsonl").exists() == (stop_at > 0)
    monkeypatch.undo()
    assert draw_to(tmp_path) == 11 - stop_at and pictures(tmp_path) == whole
    assert before.items() <= stamps(tmp_path).items() and len(records(tmp_path)) == 12


def test_a_torn_line_and_a_picture_without_a_record(tmp_path, whole):
    draw_to(tmp_path)
    before, manifest = stamps(tmp_path), tmp_path / "manifest.jsonl"
    for kept in (1, 40, 130, 300):  # within the header, behind it, within records
        manifest.write_bytes(manifest.read_bytes()[:kept])
        (tmp_path / ".00003-seed103.png-x1.tmp").write_text("half a pict")
        (tmp_path / ".00003-seed999.png-x1.tmp").write_text("not ours")
        assert draw_to(tmp_path, draw=None) == 0 and stamps(tmp_path) == before and pictures(tmp_path) == whole
        assert sorted(r["image"] for r in records(tmp_path)[1:]) == list(range(11))
        assert [path.name for path in tmp_path.glob(".*")] == [".00003-seed999.png-x1.tmp"]


def test_what_is_missing_or_cut_off_is_made_again(tmp_path, whole):
    draw_to(tmp_path)
    (tmp_path / "00002-seed102.png").unlink()
    os.truncate(tmp_path / "00009-seed109.png", 60)
    assert draw_to(tmp_path) == 2 and pictures(tmp_path) == whole


def test_prompts_may_be_added(tmp_path, whole):
    assert draw_to(tmp_path, PROMPTS[:8]) == 8
    assert draw_to(tmp_path) == 3 and pictures(tmp_path) == whole


@pytest.mark.parametrize("processes", [2, 3, 16])
def test_processes_share_the_work(tmp_path, whole, processes):
    seen = []
    count = lambda prompts, seed, progress: seen.append(seed) or paint(prompts, seed)
    made = [draw_to(tmp_path, draw=count, process=p, processes=processes, size=1) for p in range(processes)]
    assert sum(made) == 11 and max(made) - min(made) <= 1 and sorted(seen) == list(range(100, 111))
    assert pictures(tmp_path).keys() == whole.keys()
    assert draw_to(tmp_path, draw=None) == 0, "one process alone takes over what many have done"


def test_refusals(tmp_path):
    draw_to(tmp_path)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "other" / "00010-seed110.png")
    before = stamps(tmp_path), (tmp_path / "manifest.jsonl").read_bytes()
    changed = [*PROMPTS[:6], "another", *PROMPTS[7:]]
    cases = [
        (tmp_path, {"steps": 30}, "steps is 20 there, 30 here"),
        (tmp_path, {"prompts": changed}, "picture 6 is of"),
        (tmp_path / "other", {}, "00010-seed110.png: no `parameters`"),
    ]
    for out, options, message in cases:
        with pytest.raises(SdjaxError, match=message) as error:
            draw_to(out, **options)
        assert "\n" not in str(error.value)
    assert before == (stamps(tmp_path), (tmp_path / "manifest.jsonl").read_bytes())
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["00010-seed110.png"], "left as it was"
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    for line, number in (("nonsense", 3), ('{"image": 1}', 3), ("[]", 1)):
        (tmp_path / "manifest.jsonl").write_text("\n".join([*lines[: number - 1], line, *lines[number:], ""]))
        with pytest.raises(SdjaxError, match=rf"manifest.jsonl line {number}: not a record"):
            draw_to(tmp_path)


def test_one_run_at_a_time(tmp_path):
    def second(prompts, seed, progress):
        with pytest.raises(SdjaxError, match="another run writes"):
            draw_to(tmp_path)
        return paint(prompts, seed)

    assert draw_to(tmp_path, draw=second) == 11 and len(records(tmp_path)) == 12


def test_read_prompts(tmp_path):
    (tmp_path / "prompts").write_bytes("\ufeffa cat\r\n\n  a dog \n# one\n\t\nねこ".encode())
    assert read_prompts(tmp_path / "prompts") == ["a cat", "a dog", "# one", "ねこ"]
    breaks = "\r", "\r\n", "\u2028", "\u2029", "\x85", "\f", "\v"
    for mark in breaks:
        (tmp_path / "breaks").write_text(f"a cat{mark}a dog{mark}\ufeffa bird", encoding="utf-8", newline="")
        assert read_prompts(tmp_path / "breaks") == ["a cat", "a dog", "a bird"], repr(mark)
    (tmp_path / "latin").write_bytes(b"a cat\ncaf\xe9\n")
    (tmp_path / "nul").write_bytes(b"a cat\ra \0dog\n")
    (tmp_path / "empty").write_bytes(b"\n \n")
    for name, message in [
        ("latin", "latin line 2: not UTF-8"),
        ("nul", "nul line 2: a NUL is no letter"),
        ("empty", "no prompts"),
        ("none", "No such file"),
        ("", "Is a directory"),
    ]:
        with pytest.raises(SdjaxError, match=message):
            read_prompts(tmp_path / name)


# ---- the script


def start(arguments, cwd, devices):
    where = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "SDJAX_CACHE": str(cwd / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        [sys.executable, ROOT / "sample" / "generate.py", *map(str, arguments)],
        cwd=cwd,
        env=where,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def resident(process) -> int:
    """KiB of memory that a process has, 0 once it ended."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if "VmRSS" in line), 0)


def run_killed(arguments, out, cwd, devices, kills):
    """Runs a command to its end, killed (-9) each time that so many pictures are there; what was there each time."""
    seen = []
    for count in kills:
        process = start(arguments, cwd, devices)
        while len(list(out.glob("*.png"))) < count:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(stamps(out))
        assert seen[-1].keys() >= (seen[-2] if len(seen) > 1 else {}).keys()
    process = start(arguments, cwd, devices)
    assert process.wait() == 0, process.stderr.read()
    return seen


def check_killed(seen, out, undisturbed, count):
    last = stamps(out)
    for before in seen:
        assert before.items() <= last.items(), "a finished picture was made again"
    assert len(last) == count and pictures(out) == pictures(undisturbed)
    assert sorted(record["image"] for record in records(out)[1:]) == list(range(count))
    assert not list(out.glob(".*"))


def test_the_script_goes_on_after_kills(place):
    (place / "prompts.txt").write_text("\n".join(f"a red apple {i}" for i in range(24)))
    command = ["--prompts-file", "prompts.txt", "--model", "model", "--steps", 2, "--batch-size", 4, "--out"]
    process = start([*command, "undisturbed"], place, devices=2)
    assert process.wait() == 0, process.stderr.read()
    seen = run_killed([*command, "killed"], place / "killed", place, devices=2, kills=[9])
    check_killed(seen, place / "killed", place / "undisturbed", 24)
    assert [len(stamp) < 24 for stamp in seen] == [True]


@pytest.mark.slow
def test_a_thousand_prompts_killed_five_times(place):
    (place / "prompts.txt").write_text("\n".join(f"a red apple {i}" for i in range(1000)))
    command = ["--prompts-file", "prompts.txt", "--model", "model", "--steps", 2, "--batch-size", 8, "--out"]
    process = start([*command, "undisturbed"], place, devices=4)
    memory = []  # (pictures that are there, KiB)
    while process.poll() is None:
        memory.append((len(list((place / "undisturbed").glob("*.png"))), resident(process)))
        time.sleep(0.1)
    assert process.returncode == 0, process.stderr.read()
    most = lambda low, high: max(size for count, size in memory if low <= count < high)
    assert most(900, 1000) < 1.05 * most(100, 200)

    seen = run_killed([*command, "killed"], place / "killed", place, devices=4, kills=[90, 270, 450, 640, 850])
    check_killed(seen, place / "killed", place / "undisturbed", 1000)
