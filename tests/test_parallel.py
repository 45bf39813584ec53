"""One train step, on one device and on four: the same gradients, the same noise, the same checkpoint.

SGD with momentum, whose trace is the gradient after a step: Adam would hide one that is four times too large.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import ScheduleConfig
from sdjax.errors import SdjaxError
from sdjax.loss import drop_captions, noise_batch
from sdjax.nn.unet import UNet
from sdjax.parallel import average, check_batch_size, pmap_step, replicate, shard
from sdjax.schedule import make_schedule
from sdjax.train_state import make_state, make_train_step
from tests.narrow import NARROW, random_params

ROOT = Path(__file__).parent.parent
CONFIG = replace(NARROW.unet, channels=(16,), blocks=1, attention=(False,), heads=(2,))  # the middle block attends
ABAR = jnp.asarray(make_schedule(ScheduleConfig()).alphas_cumprod, jnp.float32)
SIZE = 8


def draw(index, key):
    return noise_batch(lambda unit: unit, (len(index), 4, 4, 4), index, key, ABAR, "v")


def loss_fn(params, batch, key):
    noised = draw(batch["index"], key)
    context = drop_captions(batch["context"], jnp.zeros((3, CONFIG.context_dim)), batch["index"], key, 0.5)
    out = UNet(CONFIG).apply({"params": params}, noised.x, noised.t, context)
    return jnp.square(out - noised.target).mean((1, 2, 3)), {"t": noised.t.mean()}


def child(out: str, run: str):
    """Two steps and the draws of the first on the devices of this process; and a run that goes on in the other's."""
    from tests.test_loop import options, toy

    jax.config.update("jax_disable_most_optimizations", True)
    optimizer, key = optax.sgd(0.1, momentum=0.0), jax.random.key(5)
    step = pmap_step(make_train_step(loss_fn, optimizer, 0.9, average))
    state, found, compiled = replicate(make_state(random_params(CONFIG), optimizer)), {}, []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    for n in range(2):
        rng, index = np.random.default_rng(n), np.arange(SIZE, dtype=np.int32) + n * SIZE
        context = rng.normal(size=(SIZE, 3, CONFIG.context_dim)).astype(np.float32)
        batch = shard({"index": index, "context": context})
        compiled.clear()
        state, metrics = step(state, batch, key)
        found[f"compiled {n}"] = sum("backend_compile" in event for event in compiled)
        for name, tree in {"gradient": state.opt_state, "params": state.params, "ema": state.ema, **metrics}.items():
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
            assert all((leaf == leaf[:1]).all() for leaf in leaves), f"the devices have their own {name}"
            found[f"{name} {n}"] = np.concatenate([np.ravel(leaf[0]) for leaf in leaves])
    noised = jax.pmap(draw, in_axes=(0, None))(shard(np.arange(SIZE, dtype=np.int32)), key)
    found |= {f"draw {name}": np.reshape(value, (SIZE, -1)) for name, value in noised._asdict().items()}
    done = len(list(Path(run).glob("checkpoints/*")))
    found["run"] = toy(options(run, steps=2 * done + 2, decay="constant"))["w"]
    np.savez(out, devices=jax.local_device_count(), **found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{4: ..., 1: ...}; the run of four devices is gone on with on one."""
    folder, found = tmp_path_factory.mktemp("devices"), {}
    for count in (4, 1):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        script = "import sys; from tests.test_parallel import child; child(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", script, folder / f"{count}.npz", folder / "run"], cwd=ROOT, check=True,
                       env=os.environ | flags)
        found[count] = dict(np.load(folder / f"{count}.npz"))
        assert found[count]["devices"] == count
    return found


def test_gradients_and_parameters_are_the_same_on_four_devices(found):
    for name, one in found[1].items():
        if name.split()[0] in ("gradient", "params", "ema", "loss", "grad_norm", "t"):
            difference = np.linalg.norm(found[4][name] - one) / np.linalg.norm(one)
            assert difference < 1e-5, f"{name}: {difference}"
            assert np.linalg.norm(one) > 1e-2
    assert sum(name.startswith("gradient") for name in found[1]) == 2


def test_a_second_step_does_not_compile_again(found):
    for count in (1, 4):
        assert found[count]["compiled 0"] == 1 and found[count]["compiled 1"] == 0


def test_noise_is_the_very_same_on_four_devices(found):
    for name in ("x", "t", "target", "weight"):
        np.testing.assert_array_equal(found[4][f"draw {name}"], found[1][f"draw {name}"], err_msg=name)
    assert len(np.unique(found[1]["draw target"][:, 0])) == SIZE, "two examples share their noise"


def test_a_run_of_four_devices_goes_on_on_one(found, tmp_path):
    from tests.test_loop import options, toy

    whole = toy(options(tmp_path, steps=4, decay="constant"))
    np.testing.assert_allclose(found[1]["run"], whole["w"], rtol=1e-5)


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    check_batch_size(8)
    for size in (6, 2, 0, -4):
        with pytest.raises(SdjaxError, match=f"--batch-size {size}: expected a positive multiple of the 4"):
            check_batch_size(size)
