"""The folder of a run: what is logged, what is kept, what is said, what is refused."""

import dataclasses
import json
import resource
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.training.run import Run, hold

STATE = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}


@dataclasses.dataclass
class Settings:
    steps: int = 5
    out: str = "."
    process_id: int | None = None


def open_run(folder, steps=5, **settings):
    return Run(folder, Settings(steps, **settings))


def written(folder, **settings):
    run = open_run(folder, **settings)
    run.save(3, STATE)
    run.close()
    return folder


def test_logged_floats_read_back_to_the_same_bits(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0.1, -0.0, 1e-45, 3.4e38])])
    values = values[np.isfinite(values)]
    run = open_run(tmp_path)
    run.log(1, {str(i): value for i, value in enumerate(values)}, 8)
    run.log(2, {"loss": jnp.float32(np.nan), "learning_rate": 0.1}, 8, {"examples": ["a.png"]})
    run.close()
    refuse = lambda word: pytest.fail(f"{word} is not JSON")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    read = np.float32([first[str(i)] for i in range(len(values))])
    np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32))
    assert first["step"] == 1 and first["images_per_second"] > 0 and second["images_per_second"] > 0
    assert second["loss"] is None and second["learning_rate"] == float(np.float32(0.1))
    assert second["examples"] == ["a.png"]


@pytest.mark.parametrize("tail", [b"", b'{"step": 3, "lo', b'{"step": 3}', b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path, tail):
    whole = b'{"step": 1}\n{"step": 2}\n'
    for start in (whole, b""):
        (tmp_path / "metrics.jsonl").write_bytes(start + tail)
        open_run(tmp_path).close()
        assert (tmp_path / "metrics.jsonl").read_bytes() == start


def test_config_is_that_of_the_start_and_what_differs_is_said(tmp_path, capsys):
    steps = lambda: json.loads((tmp_path / "config.json").read_text())["steps"]
    open_run(tmp_path, 5).close()
    open_run(tmp_path, 6).close()
    assert steps() == 6  # nothing was trained yet
    written(tmp_path)
    assert steps() == 5
    before = (tmp_path / "config.json").stat()
    assert not capsys.readouterr().err
    open_run(tmp_path, 7, process_id=1, out="elsewhere").close()  # neither changes what is trained
    assert steps() == 5 and (tmp_path / "config.json").stat().st_mtime_ns == before.st_mtime_ns
    said = capsys.readouterr().err
    assert said == f"--out {tmp_path} goes on with other options than it began with: --steps 7 (was 5)\n"
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "checkpoints"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SdjaxError, match=r"config.json: not readable as JSON"):
        open_run(tmp_path)


def test_restore(tmp_path, capsys):
    run = open_run(written(tmp_path))
    np.testing.assert_array_equal(run.restore({"w": np.zeros((2, 3), np.float32)})["w"], STATE["w"])
    run.save(4, {"w": STATE["w"] + 1})
    run.close()
    (tmp_path / "checkpoints" / "4" / "digests.json").unlink()
    run = open_run(tmp_path)
    np.testing.assert_array_equal(run.restore({"w": np.zeros((2, 3), np.float32)})["w"], STATE["w"])
    run.close()
    assert "damaged checkpoint, not used: " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "damaged-4"}
    fresh = open_run(tmp_path / "fresh")
    assert fresh.restore(STATE) is None
    fresh.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(SdjaxError, match=f"out {folder}: cannot be written"):
            open_run(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_two_jobs_in_one_folder_are_refused(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(SdjaxError, match=f"out {tmp_path}: another process is training there"):
        open_run(tmp_path)
    run.close()
    open_run(tmp_path).close()


def test_what_could_not_be_opened_can_be_tried_again(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SdjaxError, match=r"config\.json: not readable as JSON"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    open_run(tmp_path).close()


def test_a_folder_can_be_held_before_it_is_opened(tmp_path):
    hold(tmp_path)
    hold(tmp_path)
    run = open_run(tmp_path)
    with pytest.raises(SdjaxError, match="another process is training there"):
        hold(tmp_path)
    run.close()
    hold(tmp_path)
    open_run(tmp_path).close()


def test_debris_of_a_killed_job_is_removed(tmp_path):
    for name in (
        ".config.json.tmp",
        "samples/.4.png-x1.tmp",
        ".export.k2/new/model_index.json",
        "samples/2.png",
        "export/model_index.json",
        "checkpoints/.4.tmp/state/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    open_run(tmp_path).close()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["config.json", "export/model_index.json", "samples/2.png"]


def test_the_marker_comes_after_the_checkpoint_and_goes_with_the_next_start(tmp_path):
    run = open_run(tmp_path)
    run.save(3, STATE)
    run.preempted(3)
    assert (tmp_path / "checkpoints" / "3").is_dir() and "after step 3" in (tmp_path / "PREEMPTED").read_text()
    run.close()
    run = open_run(tmp_path)
    assert (tmp_path / "PREEMPTED").is_file()  # training has not begun again
    run.start(3)
    assert not (tmp_path / "PREEMPTED").exists()
    run.close()


def test_tensorboard_gets_what_is_logged(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def __getattr__(self, name):
            return lambda *args, **_: calls.append((name, *args))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    run = open_run(tmp_path)
    run.start(3)
    run.log(4, {"loss": 0.5}, 8, {"examples": ["a.png"]})
    run.save_sheet(4, [Image.new("RGB", (4, 4))])
    run.close()
    assert calls[0] == (str(tmp_path / "tensorboard"), 4) and calls[1] == ("add_scalar", "loss", 0.5, 4)
    assert [call[:2] for call in calls[2:]] == [
        ("add_scalar", "images_per_second"),
        ("add_image", "samples"),
        ("close",),
    ]
    assert (tmp_path / "samples" / "4.png").is_file()


def test_a_full_disk_is_said_in_one_line(tmp_path):
    run, limits = open_run(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(SdjaxError, match=rf"out {tmp_path}: metrics.jsonl cannot be written .File too large"):
            run.log(1, {"loss": 0.5}, 8)
        with pytest.raises(SdjaxError, match=rf"{tmp_path}/samples/1.png: cannot be written .File too large"):
            run.save_sheet(1, [noise])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.close()
    assert not list((tmp_path / "samples").iterdir())


def test_without_tensorboard_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    run = open_run(tmp_path)
    run.start(0)
    run.log(1, {"loss": 0.5}, 8)
    run.close()
    assert not (tmp_path / "tensorboard").exists()
