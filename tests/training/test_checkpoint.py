"""Checkpoints: what comes back is what was saved, to the bit, or it does not come back."""

import json
import resource
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.training import checkpoint
from sdjax.training.checkpoint import Checkpoints, read_record

STATE = {
    "w": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "none": None,
    "inner": (np.zeros((), np.int32), np.ones(2, jnp.bfloat16)),
    "a.b/c": np.asfortranarray(np.eye(3, 4)[:, 1:]),
}


def state(step):
    return STATE | {"w": STATE["w"] + step}


def saved(folder, steps=(1, 2, 3), **options):
    checkpoints = Checkpoints(folder / "checkpoints", **options)
    for step in steps:
        checkpoints.save(step, state(step), {"examples": 8 * step})
    checkpoints.wait()
    return checkpoints


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and (x == y).all()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_the_newest_comes_back_bit_for_bit(tmp_path, monkeypatch):
    assert Checkpoints(tmp_path / "checkpoints").restore(STATE) is None
    saved(tmp_path).close()
    assert names(tmp_path) == ["2", "3"]
    monkeypatch.setattr(checkpoint, "GROUP", 16)  # read in several groups
    adopted = []
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), STATE)
    step, found = Checkpoints(tmp_path / "checkpoints").restore(shapes, lambda leaf: adopted.append(leaf) or leaf)
    assert step == 3 and equal(found, state(3)) and len(adopted) == 4
    record = read_record(tmp_path / "checkpoints" / "3")
    assert record["step"] == 3 and record["examples"] == 24
    assert set(record["leaves"]) == {"w", "inner.0", "inner.1", "a.b/c"}


@pytest.mark.parametrize(
    "other",
    [
        {"w": jnp.zeros((2, 4))},
        {"w": jnp.zeros(6)},
        {"w": jnp.zeros((2, 3), jnp.bfloat16)},
        {"inner": ()},
        {"v": jnp.zeros(2)},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other):
    checkpoints = saved(tmp_path)
    with pytest.raises(SdjaxError, match=f"out {tmp_path}: its checkpoint of step 3 is of another model") as caught:
        checkpoints.restore(STATE | other)
    assert "\n" not in str(caught.value) and names(tmp_path) == ["2", "3"]


def test_no_flipped_bit_comes_back(tmp_path):
    """200 single bits in all files of a checkpoint: each is found, and the one before is taken."""
    checkpoints, rng = saved(tmp_path), np.random.default_rng(0)
    folder = tmp_path / "checkpoints" / "3"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    weights = np.array([path.stat().st_size for path in files], float)
    for n in range(200):
        path = files[n] if n < len(files) else rng.choice(files, p=weights / weights.sum())
        whole = path.read_bytes()
        damaged, bit = bytearray(whole), int(rng.integers(8 * len(whole)))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        lines = []
        step, found = checkpoints.restore(STATE, log=lines.append)
        assert step == 2 and equal(found, state(2)), f"bit {bit} of {path}"
        assert len(lines) == 1 and f"{folder}: {path.relative_to(folder)} is not what was written" in lines[0]
        path.write_bytes(whole)
    assert checkpoints.restore(STATE)[0] == 3


def test_what_was_not_written_as_it_was_in_memory_is_found(tmp_path, monkeypatch):
    """The files are whole, but of other values: the arrays' own digests tell."""
    save = checkpoint._orbax.save
    monkeypatch.setattr(
        checkpoint._orbax,
        "save",
        lambda self, path, leaves: save(self, path, leaves | {"w": leaves["w"] + (leaves["w"].max() == 8)}),
    )
    lines = []
    assert saved(tmp_path).restore(STATE, log=lines.append)[0] == 2
    assert len(lines) == 1 and "3: w is not what was saved" in lines[0]


@pytest.mark.parametrize("damage", ["truncated", "deleted", "emptied", "added", "no digests", "no folder inside"])
def test_truncated_and_deleted_files_are_found(tmp_path, damage):
    checkpoints = saved(tmp_path)
    folder = tmp_path / "checkpoints" / "3"
    for path in [path for path in sorted(folder.rglob("*")) if path.is_file()]:
        shutil.copytree(folder, tmp_path / "whole")
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "deleted":
            path.unlink()
        elif damage == "emptied":
            path.write_bytes(b"")
        elif damage == "added":
            path.with_name("more").write_bytes(b"")
        elif damage == "no digests":
            (folder / "digests.json").unlink()
        else:
            shutil.rmtree(folder / "state")
        lines = []
        assert checkpoints.restore(STATE, log=lines.append)[0] == 2 and str(folder) in lines[0]
        shutil.rmtree(folder)
        (tmp_path / "whole").rename(folder)


def test_where_none_is_whole_nothing_begins_anew(tmp_path):
    checkpoints = saved(tmp_path)
    for step in (2, 3):
        (tmp_path / "checkpoints" / str(step) / "state" / "0" / "manifest.ocdbt").unlink()
    with pytest.raises(SdjaxError, match=r"none of its checkpoints is whole .*manifest.ocdbt is missing"):
        checkpoints.restore(STATE, log=lambda line: None)


def test_a_damaged_one_is_set_aside_and_then_replaced(tmp_path):
    checkpoints = saved(tmp_path)
    (tmp_path / "checkpoints" / "3" / "digests.json").unlink()
    step, _ = checkpoints.restore(STATE, log=lambda line: None)
    checkpoints.set_aside(after=step)
    assert names(tmp_path) == ["2", "damaged-3"]
    checkpoints.save(3, state(3))
    checkpoints.wait()
    assert names(tmp_path) == ["2", "3"] and checkpoints.restore(STATE)[0] == 3


def test_kept_by_number_and_by_age(tmp_path, monkeypatch):
    """Every 20 minutes one: 0:00, 0:20 ... 2:00. Kept are the newest two and one for each whole hour."""
    now = [1e9]
    monkeypatch.setattr(checkpoint.time, "time", lambda: now[0])
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, keep_hours=1)
    for step in range(7):
        checkpoints.save(step, STATE)
        checkpoints.wait()
        now[0] += 1200
    assert names(tmp_path) == ["0", "3", "5", "6"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    """A file system that takes no more: one line, the older ones whole, no debris; with room again it goes on."""
    checkpoints, large = saved(tmp_path), STATE | {"w": np.random.default_rng(0).normal(size=100_000)}
    before, limits = names(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        checkpoints.save(4, large)
        with pytest.raises(SdjaxError) as caught:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"out {tmp_path}: the checkpoint of step 4 could not be written (File too large)" in str(caught.value)
    assert "\n" not in str(caught.value) and names(tmp_path) == before
    assert equal(checkpoints.restore(STATE)[1], state(3))
    checkpoints.save(4, large)
    checkpoints.close()
    assert names(tmp_path) == ["3", "4"]


def test_a_failure_in_the_background_is_heard_of(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, STATE)
    with pytest.raises(SdjaxError, match="the checkpoint of step 1 could not be written"):
        while True:
            checkpoints.check()
    checkpoints.close()  # said once


def test_debris_of_a_killed_save_is_removed(tmp_path):
    checkpoints = saved(tmp_path)
    for name in (".4.tmp", "5.orbax-checkpoint-tmp-7"):
        shutil.copytree(tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / name)
    assert checkpoints.steps() == [2, 3]
    checkpoints.clean()
    assert names(tmp_path) == ["2", "3"]


def test_digests_are_of_the_bytes(tmp_path):
    """-0.0 and 0.0 are equal, and two NaNs may differ: neither passes for the other."""
    record = lambda tree: [leaf[0] for leaf in _leaves(tmp_path, tree).values()]
    zero, negative = record({"w": np.float32([0.0])}), record({"w": np.float32([-0.0])})
    assert zero != negative and record({"w": np.zeros((2, 1))}) == record({"w": np.zeros((1, 2))})
    assert json.dumps(_leaves(tmp_path, {"w": np.zeros((2, 1))})) != json.dumps(_leaves(tmp_path, {"w": np.zeros(2)}))


def _leaves(tmp_path, tree):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, tree)
    checkpoints.close()
    return read_record(tmp_path / "checkpoints" / "1")["leaves"]


def test_the_hook_of_late_callbacks_goes_with_the_checkpoints(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    before = sys.unraisablehook
    fault = lambda text: types.SimpleNamespace(exc_value=RuntimeError(text))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert sys.unraisablehook is before
    checkpoints.save(1, {"w": np.ones(3)})
    sys.unraisablehook(fault("Event loop is closed"))
    sys.unraisablehook(fault("something else"))
    assert [str(one.exc_value) for one in told] == ["something else"]
    checkpoints.close()
    assert sys.unraisablehook is before
    later = lambda fault: None
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.restore({"w": np.ones(3)})
    sys.unraisablehook = later
    checkpoints.close()
    assert sys.unraisablehook is later, "somebody else's, put over it"
