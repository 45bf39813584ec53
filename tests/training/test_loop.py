"""fit on a toy: what a run leaves, and that stopping it anywhere changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.devices.processes import local_part
from sdjax.diffusion.noise import example_keys
from sdjax.errors import SdjaxError
from sdjax.training.loop import dry_run, fit
from sdjax.training.options import TrainOptions
from sdjax.training.run import Run

pytestmark = pytest.mark.usefixtures("quick_compile")
ROOT = Path(__file__).parents[2]


def options(out, **changes):
    return replace(
        TrainOptions(
            data=Path("unused"),
            out=Path(out),
            steps=6,
            batch_size=8,
            learning_rate=0.1,
            warmup=2,
            decay="cosine",
            ema_decay=0.5,
            checkpoint_every=2,
            log_every=1,
            sample_every=1,
        ),
        **changes,
    )


def loss_fn(params, batch, key):
    """Regression with a noise of its own for every example: any state that a restart loses would show."""
    noise = jax.vmap(jax.random.normal)(example_keys(key, batch["index"]))
    return jnp.square(batch["x"] @ params["w"] + noise), {"noise": noise.mean()}


def toy(settings, on_sample=None, pause=0.0, poison=(), params=None, **more):
    """`poison`: steps in whose batch one example is not a number."""

    def stream(start):
        mine = local_part(settings.examples)
        for step in range(start, 10**6):
            time.sleep(pause)
            x = np.random.default_rng(step).normal(size=(settings.examples, 3)).astype(np.float32)
            x[5] *= np.nan if step + 1 in poison else 1
            yield {"x": x[mine], "index": np.arange(settings.examples, dtype=np.int32)[mine] + step * settings.examples}

    return fit(settings, params or {"w": np.float32([1.0, 2.0, 3.0])}, loss_fn, stream, on_sample, **more)


def records(folder):
    """step -> its last record, without the time that it took."""
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: {k: v for k, v in line.items() if k != "images_per_second"} for line in lines}


def checkpoints(folder):
    return sorted(int(path.name) for path in (Path(folder) / "checkpoints").iterdir())


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    whole = toy(options(tmp_path / "whole"))
    stop = lambda step, ema, run: step == 3 and signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        toy(options(tmp_path / "parts"), stop)
    assert caught.value.code == 0 and checkpoints(tmp_path / "parts") == [
        2,
        4,
    ]  # the signal of step 3 is seen after step 4
    parts = toy(options(tmp_path / "parts"))
    np.testing.assert_array_equal(whole["w"], parts["w"])
    found = records(tmp_path / "parts")
    assert list(found) == [1, 2, 3, 4, 5, 6] and found == records(tmp_path / "whole")
    assert set(found[1]) == {"step", "loss", "learning_rate", "grad_norm", "noise"}
    assert found[1]["learning_rate"] == 0 and found[3]["learning_rate"] == pytest.approx(0.1)  # of the update itself
    assert len({record["noise"] for record in found.values()}) == 6
    assert checkpoints(tmp_path / "parts") == checkpoints(tmp_path / "whole") == [4, 6]
    again = toy(options(tmp_path / "parts"))  # nothing left to do
    np.testing.assert_array_equal(again["w"], whole["w"])
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 6


def test_samples_are_drawn_with_the_weights_that_are_exported(tmp_path):
    seen = {}
    ema = toy(options(tmp_path / "a", steps=3), lambda step, params, run: seen.update({step: params["w"]}))
    assert list(seen) == [1, 2, 3]
    np.testing.assert_array_equal(ema["w"], seen[3])
    plain = toy(options(tmp_path / "b", steps=3, ema_decay=0.0, sample_every=2), lambda step, *_: seen.pop(step))
    assert list(seen) == [1] and np.abs(plain["w"] - ema["w"]).max() > 1e-3


def test_a_run_goes_on_where_samples_do_not_fit_the_device(tmp_path, capfd):
    def draw(step, params, run):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory" if step < 3 else "INTERNAL: broken")

    toy(options(tmp_path / "a", steps=2), draw)
    said = capfd.readouterr().err
    assert "step 1: no samples, the whole model does not fit" in said and "--sample-every 0" in said
    assert (tmp_path / "a" / "checkpoints" / "2").is_dir()
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        toy(options(tmp_path / "b", steps=3), draw)


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    during = []
    toy(options(tmp_path, steps=1), lambda *_: during.append(signal.getsignal(signal.SIGTERM)))
    assert during[0] != before[0] and before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_speed_counts_the_pictures_since_the_last_record(tmp_path, monkeypatch):
    counted = {}
    log = Run.log
    monkeypatch.setattr(Run, "log", lambda *args: counted.update({args[1]: args[3]}) or log(*args))
    toy(options(tmp_path, steps=5, log_every=3))
    assert counted == {3: 24, 5: 16}


def test_speed_is_of_the_steps_alone(tmp_path, monkeypatch):
    """Not of samples, validation and checkpoints, which take half a second each here."""
    slow = lambda *_: time.sleep(0.5)
    monkeypatch.setattr(Run, "save", slow)
    monkeypatch.setattr("sdjax.training.loop._Loop.validate", lambda *_: slow() or 1.0)
    toy(options(tmp_path, steps=2, checkpoint_every=1, validate_every=1), slow, validation=["some"])
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["images_per_second"] > 8 / 0.5 and second["images_per_second"] > 8 / 0.5


def test_sigterm_leaves_a_checkpoint_and_exit_0(tmp_path):
    script = (
        "import sys; from tests.training.test_loop import options, toy; "
        "toy(options(sys.argv[1], steps=100_000), pause=0.02)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if (tmp_path / "metrics.jsonl").exists() or child.poll() is not None:
                break
            time.sleep(0.1)
        child.terminate()
        assert child.wait(120) == 0
    finally:
        child.kill()
    last = max(records(tmp_path))
    assert checkpoints(tmp_path)[-1] == last
    assert f"after step {last};" in (tmp_path / "PREEMPTED").read_text()
    toy(options(tmp_path, steps=last + 1))
    assert max(records(tmp_path)) == last + 1 and not (tmp_path / "PREEMPTED").exists()


def test_killed_again_and_again_it_ends_as_undisturbed(tmp_path):
    """kill -9 while steps are taken and checkpoints are written: the same records and weights to the bit."""
    changes = {"steps": 24, "checkpoint_every": 1, "sample_every": 0}
    whole = toy(options(tmp_path / "whole", **changes))
    script = f"import sys; from tests.training.test_loop import *; toy(options(sys.argv[1], **{changes}), pause=0.1)"
    rng, out = np.random.default_rng(0), tmp_path / "killed"
    for _ in range(3):
        before = len((out / "metrics.jsonl").read_bytes().splitlines()) if out.exists() else 0
        child = subprocess.Popen(
            [sys.executable, "-c", script, out],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,  # compiled as here: its sums are in the same order
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )
        try:
            while child.poll() is None:
                if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_bytes().splitlines()) > before:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL, child.stderr.read()
        child.stderr.close()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1')  # and as if a line had been torn
    killed = toy(options(out, **changes))
    np.testing.assert_array_equal(killed["w"], whole["w"])
    assert records(out) == records(tmp_path / "whole")
    assert not [path for path in out.rglob("*") if "tmp" in path.name or path.name.startswith(".")]


def test_a_loss_that_is_not_finite_is_named_and_changes_nothing(tmp_path, capsys):
    """The run goes on as if the poisoned steps had not been, but for the draws of the later ones."""
    names = lambda step: [f"row {i} of {step}" for i in range(8)]
    seen = {}
    toy(
        options(tmp_path, log_every=4, warmup=0, ema_decay=0.0),
        poison=(2, 3),
        name_batch=names,
        on_sample=lambda step, params, run: seen.update({step: params["w"]}),
    )
    np.testing.assert_array_equal(seen[1], seen[2])
    np.testing.assert_array_equal(seen[1], seen[3])
    assert (seen[4] != seen[3]).all()
    found = records(tmp_path)
    assert list(found) == [2, 3, 4, 6] and found[2]["loss"] is None and np.isfinite(found[4]["loss"])
    assert found[3]["skipped"] and found[3]["examples"] == names(2) and "skipped" not in found[4]
    assert "step 3: loss nan, gradient norm nan: skipped" in capsys.readouterr().err


def test_the_run_stops_after_so_many_in_a_row(tmp_path):
    poison = (2, 4, 5, 6)
    with pytest.raises(SdjaxError, match=r"step 6: the loss or gradient was not finite for 3 steps in a row"):
        toy(options(tmp_path, steps=9, max_bad_steps=3, sample_every=0), poison=poison)
    with pytest.raises(SdjaxError, match="step 6: "):  # they are counted across restarts
        toy(options(tmp_path, steps=9, max_bad_steps=3, sample_every=0), poison=poison)
    assert max(records(tmp_path)) == 6


def test_validation_is_of_the_exported_weights_and_always_the_same_draws(tmp_path):
    rng = np.random.default_rng(7)
    x, index = rng.normal(size=(16, 3)).astype(np.float32), np.arange(16, dtype=np.int32)
    held_out = [
        ({"x": x[part], "index": index[part]}, weight)
        for part, weight in (
            (slice(0, 8), np.ones(8, np.float32)),
            (slice(8, 16), np.float32([1, 1, 1, 0, 0, 0, 0, 0])),
        )
    ]
    settings, seen = options(tmp_path, log_every=100, validate_every=3), {}
    toy(settings, validation=held_out, on_sample=lambda step, params, run: seen.update({step: params}))
    found = records(tmp_path)
    assert list(found) == [3, 6] and set(found[3]) > {"loss", "learning_rate", "grad_norm", "validation_loss"}
    losses = [loss_fn(seen[step], {"x": x, "index": index}, jax.random.key(0))[0][:11].mean() for step in (3, 6)]
    np.testing.assert_allclose([found[step]["validation_loss"] for step in (3, 6)], losses, rtol=1e-5)


def test_parameters_may_be_made_where_they_lie(tmp_path):
    """By a function of the seed, in either layout."""
    for parallel in ("pmap", "fsdp"):
        draw = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (3,))}
        settings = options(tmp_path / parallel, seed=3, steps=1, warmup=1, ema_decay=0, parallel=parallel)
        found = toy(settings, params=draw)
        np.testing.assert_allclose(found["w"], draw(3)["w"], rtol=1e-6)  # the first update of a warm-up is none


def test_before_the_first_step_it_says_what_there_is(tmp_path, capsys):
    toy(options(tmp_path / "a", steps=1, accumulate=2, parallel="fsdp"))
    said = capsys.readouterr().out
    for line in (
        "devices     1 x cpu, 1 process, fsdp",
        "parameters  3 trained, 1 arrays",
        "state       0.0 MB: ",
        "step        16 pictures in 2 parts, ",
        "memory      ",
    ):
        assert line in said
    abstract = {"x": jax.ShapeDtypeStruct((8, 3), np.float32), "index": jax.ShapeDtypeStruct((8,), np.int32)}
    for parallel in ("pmap", "fsdp"):
        settings = options(tmp_path / "b", parallel=parallel, steps=77)
        dry_run(settings, lambda seed: {"w": jnp.zeros(3)}, loss_fn, abstract)
        said = capsys.readouterr().out
        assert '"steps": 77' in said and f"1 process, {parallel}" in said and "memory      " in said
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps 0: expected at least 1"),
        ({"batch_size": -8}, "batch_size -8"),
        ({"checkpoint_every": 0}, "checkpoint_every 0"),
        ({"log_every": 0}, "log_every 0"),
        ({"sample_every": -1}, "sample_every -1"),
        ({"warmup": -1}, "warmup -1"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"seed": -1}, "seed -1"),
        ({"optimizer": "adam"}, "optimizer adam"),
        ({"decay": "step"}, "decay step"),
    ],
)
def test_refusals_name_the_option_and_leave_nothing(tmp_path, changes, message):
    with pytest.raises(SdjaxError, match=message):
        toy(options(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_another_optimizer_does_not_go_on(tmp_path):
    toy(options(tmp_path, steps=1))
    with pytest.raises(SdjaxError, match=f"out {tmp_path}: its checkpoint of step 1 is .* another .* optimizer"):
        toy(options(tmp_path, optimizer="lion"))


def test_a_run_that_skipped_most_of_its_steps_ends_with_status_1(tmp_path, capsys):
    bad = (1, 2, 3, 5, 6, 7)
    with pytest.raises(SystemExit) as stop:
        toy(options(tmp_path, steps=8, max_bad_steps=4, sample_every=0), poison=bad)
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert lines == [
        f"error: out {tmp_path}: 6 of 8 steps were skipped, since their loss or gradient was not finite; nothing is "
        "exported, and metrics.jsonl names their batches"
    ]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 8
    toy(
        options(tmp_path / "half", steps=8, max_bad_steps=5, sample_every=0), poison=bad[2:]
    )  # half of them is no refusal


def test_metrics_of_steps_that_were_lost_are_cut_off(tmp_path):
    """A killed run had logged more steps than its checkpoint has: they come again, and stand in the log once."""
    settings = options(tmp_path, steps=6, sample_every=0)
    toy(settings)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    with open(path, "ab") as file:
        file.write(b'{"step": 7, "loss": 1.0}\nnot ours\n')
    toy(settings)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if line != "not ours"]
    assert steps == sorted(set(steps)) and steps[-1] == 6 and b"not ours" in path.read_bytes()
    same = lambda text: [json.loads(line)["loss"] for line in text.splitlines() if line.startswith(b"{")]
    assert same(path.read_bytes()) == same(before)
    shutil.rmtree(tmp_path / "checkpoints")  # from the beginning
    toy(settings)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines() if line != "not ours"] == steps
