"""fit on a toy: what a run leaves, and that stopping it anywhere changes nothing."""

import json
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

from sdjax.errors import SdjaxError
from sdjax.loop import TrainOptions, fit
from sdjax.parallel import example_keys

pytestmark = pytest.mark.usefixtures("quick_compile")
ROOT = Path(__file__).parent.parent


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


def toy(settings, on_sample=None, pause=0.0):
    """Regression with a noise of its own for every example: any state that a restart loses would show."""

    def loss_fn(params, batch, key):
        noise = jax.vmap(jax.random.normal)(example_keys(key, batch["index"]))
        return jnp.square(batch["x"] @ params["w"] + noise), {"noise": noise.mean()}

    def stream(start):
        for step in range(start, 10**6):
            time.sleep(pause)
            x = np.random.default_rng(step).normal(size=(settings.batch_size, 3)).astype(np.float32)
            yield {"x": x, "index": np.arange(settings.batch_size, dtype=np.int32) + step * settings.batch_size}

    return fit(settings, {"w": jnp.array([1.0, 2.0, 3.0])}, loss_fn, stream, on_sample)


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


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    during = []
    toy(options(tmp_path, steps=1), lambda *_: during.append(signal.getsignal(signal.SIGTERM)))
    assert during[0] != before[0] and before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_speed_counts_the_pictures_since_the_last_record(tmp_path, monkeypatch):
    counted = {}
    monkeypatch.setattr("sdjax.checkpoint.Run.log", lambda run, step, metrics, images: counted.update({step: images}))
    toy(options(tmp_path, steps=5, log_every=3))
    assert counted == {3: 24, 5: 16}


def test_sigterm_leaves_a_checkpoint_and_exit_0(tmp_path):
    script = (
        "import sys; from tests.test_loop import options, toy; toy(options(sys.argv[1], steps=100_000), pause=0.02)"
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
    toy(options(tmp_path, steps=last + 1))
    assert max(records(tmp_path)) == last + 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "--steps 0: expected at least 1"),
        ({"batch_size": -8}, "--batch-size -8"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0"),
        ({"log_every": 0}, "--log-every 0"),
        ({"sample_every": -1}, "--sample-every -1"),
        ({"warmup": -1}, "--warmup -1"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"seed": -1}, "--seed -1"),
        ({"optimizer": "adam"}, "--optimizer adam"),
        ({"decay": "step"}, "--decay step"),
    ],
)
def test_refusals_name_the_flag_and_leave_nothing(tmp_path, changes, message):
    with pytest.raises(SdjaxError, match=message):
        toy(options(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_another_optimizer_does_not_go_on(tmp_path):
    toy(options(tmp_path, steps=1))
    with pytest.raises(SdjaxError, match=f"--out {tmp_path}: its checkpoint of step 1 is .* another .* optimizer"):
        toy(options(tmp_path, optimizer="lion"))
