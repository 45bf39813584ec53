"""The folder of a run: what is logged, what is kept, what is refused."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.checkpoint import Run
from sdjax.errors import SdjaxError


@dataclasses.dataclass
class Settings:
    steps: int = 5


STATE = {"w": jnp.arange(6.0).reshape(2, 3), "inner": (jnp.zeros((), jnp.int32), jnp.ones(2, jnp.bfloat16))}


def open_run(folder, steps=5):
    return Run(folder, Settings(steps))


def written(folder, state=STATE):
    run = open_run(folder)
    run.save(3, state)
    run.close()
    return folder


def test_logged_floats_read_back_to_the_same_bits(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0.1, -0.0, 1e-45, 3.4e38, np.inf])])
    values = values[~np.isnan(values)]
    run = open_run(tmp_path)
    run.log(1, {str(i): value for i, value in enumerate(values)}, 8)
    run.log(2, {"loss": jnp.float32(np.nan), "learning_rate": 0.1}, 8)
    run.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    read = np.float32([first[str(i)] for i in range(len(values))])
    np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32))
    assert first["step"] == 1 and "images_per_second" not in first and second["images_per_second"] > 0
    assert math.isnan(second["loss"]) and second["learning_rate"] == float(np.float32(0.1))


def test_the_newest_checkpoint_comes_back_bit_for_bit(tmp_path):
    run = open_run(tmp_path)
    assert run.restore(STATE) is None
    for step in (1, 2, 3):
        run.save(step, STATE | {"w": STATE["w"] + step})
    run.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    again = open_run(tmp_path)
    state = again.restore({"w": jnp.zeros((2, 3)), "inner": (jnp.int32(7), jnp.zeros(2, jnp.bfloat16))})
    again.close()
    np.testing.assert_array_equal(state["w"], STATE["w"] + 3)
    assert state["inner"][0] == 0 and state["inner"][1].dtype == jnp.bfloat16 and (state["inner"][1] == 1).all()


@pytest.mark.parametrize("other", [
    STATE | {"w": jnp.zeros((2, 4))}, STATE | {"w": jnp.zeros(6)}, {"w": STATE["w"]}, STATE | {"inner": ()},
    STATE | {"v": jnp.zeros(2)}, {"v": STATE["w"], "inner": STATE["inner"]}], ids=str)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other):
    run = open_run(written(tmp_path))
    with pytest.raises(SdjaxError, match=f"--out {tmp_path}: its checkpoint of step 3 is of another model") as caught:
        run.restore(other)
    run.close()
    assert "\n" not in str(caught.value)


def test_config_is_that_of_the_start(tmp_path):
    steps = lambda: json.loads((tmp_path / "config.json").read_text())["steps"]
    open_run(tmp_path, 5).close()
    open_run(tmp_path, 6).close()
    assert steps() == 6  # nothing was trained yet
    written(tmp_path)
    assert steps() == 5
    before = (tmp_path / "config.json").stat()
    open_run(tmp_path, 7).close()
    assert steps() == 5 and (tmp_path / "config.json").stat().st_mtime_ns == before.st_mtime_ns
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "checkpoints"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(SdjaxError, match=f"--out {folder}: cannot be written"):
            open_run(folder)
    assert (tmp_path / "file").read_text() == "mine"
