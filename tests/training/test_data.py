"""The training script on data that is not as it should be: bad pictures, and numbers that are none."""

import json

import numpy as np
import pytest

from sdjax.data.order import Order
from sdjax.data.source import open_data
from sdjax.model.load import create
from sdjax.training.cache import cached_latents
from sdjax.training.checkpoint import read_record
from tests.data_sets.test_source import make_folder, named
from tests.scripts import TRAIN, arguments

pytestmark = pytest.mark.usefixtures("quick_compile")
NAME = "train/train_diffusion.py"
DEFAULTS = TRAIN | {"--log-every": 1, "--sample-every": 0, "--warmup": 0, "--checkpoint-every": 1, "--keep": 99}


@pytest.mark.parametrize("count, bad", [(200, 8), pytest.param(10_000, 37, marks=pytest.mark.slow)])
def test_bad_pictures_are_named_and_above_a_share_they_stop_the_run(script, tmp_path, capfd, count, bad):
    (tmp_path / "data").mkdir()
    numbers = make_folder(tmp_path / "data", count, bad)
    run = lambda out, share: script(
        NAME,
        *arguments(
            NAME, DEFAULTS, {"--data": tmp_path / "data", "--out": tmp_path / out, "--steps": 1, "--max-bad": share}
        ),
    )
    assert run("whole", bad / count) == 0
    assert named(tmp_path / "whole") == numbers and (tmp_path / "whole" / "export" / "model_index.json").is_file()
    latents = next((tmp_path / "whole" / "cache").glob("latents-*"))
    notes = {}
    for path in latents.iterdir():
        with open(path, "rb") as file:
            rows = np.lib.format.read_array(file)
            notes |= json.loads(file.read())
            assert np.isfinite(rows).all()
    assert sorted(map(int, notes)) == numbers, "a good picture has another's latents"
    capfd.readouterr()
    assert run("stopped", (bad - 1) / count) == 2
    last = capfd.readouterr().err.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: ") and f"{bad} of {count} pictures, more than --max-bad" in last
    assert set(named(tmp_path / "stopped")) <= set(numbers) and not (tmp_path / "stopped" / "export").exists()


def test_a_loss_that_is_no_number(script, place, tmp_path, capfd):
    """One picture's latents: the steps that meet it are named and change nothing, and two in a row end the run."""
    sd, source = create(place / "model"), open_data(place / "pictures", 8)
    rows, order = cached_latents(sd, source, tmp_path / "cache"), Order([np.arange(16)], 8, 0)
    row = next(row for row in order(1).rows if row not in order(2).rows)
    np.load(next((tmp_path / "cache").glob("latents-*/*.npy")), mmap_mode="r+")[row] = np.nan
    assert np.isnan(rows(order(1))[0]).any()
    bad = [bool((order(step - 1).rows == row).any()) for step in range(1, 99)]
    end = next(step for step in range(2, 99) if bad[step - 2] and bad[step - 1])
    assert script(NAME, *arguments(NAME, DEFAULTS, {"--out": tmp_path, "--max-bad-steps": 2, "--steps": 99})) == 2
    last = capfd.readouterr().err.rstrip("\n").split("\n")[-1]
    assert last.startswith(f"error: step {end}: the loss or gradient was not finite for 2 steps in a row")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [record["step"] for record in records] == list(range(1, end + 1))
    saved = {0: None} | {step: leaves(tmp_path, step) for step in range(1, end)}
    for record in records:
        step = record["step"]
        assert (record["loss"] is None) == record.get("skipped", False) == bad[step - 1]
        if bad[step - 1]:
            assert record["examples"] == [source.files[row] for row in order(step - 1).rows]
        if 1 < step < end:
            same = [name for name in saved[step] if saved[step][name] == saved[step - 1][name]]
            assert len(same) == (len(saved[step]) if bad[step - 1] else 0), same


def leaves(run, step):
    """Digests of what a step may change."""
    found = read_record(run / "checkpoints" / str(step))["leaves"]
    return {name: digest for name, (digest, *_) in found.items() if name.startswith(("params", "opt_state", "ema"))}
