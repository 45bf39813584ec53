"""One train step in both layouts, on one device and on several: the same gradients, noise and checkpoint.

SGD with momentum, whose trace is the gradient after a step: Adam would hide one that is four times too large.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.devices.layouts import PmapLayout, check_batch_size, make_layout
from sdjax.devices.processes import local_part, start_processes
from sdjax.diffusion.schedule import ScheduleConfig, make_schedule
from sdjax.errors import SdjaxError
from sdjax.networks.table import param_shapes
from sdjax.nn.layers import ResBlock, conv3x3, timestep_embedding
from sdjax.nn.transformer import SpatialTransformer
from sdjax.training.clip import clip_loss
from sdjax.training.diffusion import drop_captions, dropped, noise_batch
from sdjax.training.state import make_state, make_train_step
from tests.narrow import NARROW, NARROW_VISION

ROOT = Path(__file__).parents[2]
ABAR = make_schedule(ScheduleConfig()).alphas_cumprod.astype(np.float32)
SIZE = 8


def draw(index, key):
    return noise_batch(lambda unit: unit, (len(index), 4, 4, 4), index, key, jnp.asarray(ABAR), "v")


class Net(nn.Module):
    """A UNet's pieces: convolutions, time embedding, norms, self- and cross-attention. It compiles in seconds."""

    @nn.compact
    def __call__(self, x, t, context):
        time = nn.Dense(32, name="time")(timestep_embedding(t, 16))
        h = conv3x3(16, "conv_in", jnp.float32)(x)
        h = ResBlock(16, 4, 1e-5, jnp.float32, name="res")(h, time)
        h = SpatialTransformer(2, 4, False, jnp.float32, name="attn")(h, context)
        h = conv3x3(16, "upsample", jnp.float32, enlarge=True)(h)
        return conv3x3(4, "conv_out", jnp.float32, stride=2)(h)


def net_params():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros((1, 3, 8)))
    return drawn(shapes["params"])


def drawn(shapes, size=0.2):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape) * size), shapes)


def loss_fn(params, batch, key):
    noised = draw(batch["index"], key)
    context = drop_captions(batch["context"], jnp.zeros((3, 8)), dropped(batch["index"], key, 0.5))
    out = Net().apply({"params": params}, noised.x, noised.t, context)
    return jnp.square(out - noised.target).mean((1, 2, 3)), {"t": noised.t.mean()}


def diffusion(layout):
    """(loss, parameters, a step's batch)"""

    def batch(rng, n):
        index = np.arange(SIZE, dtype=np.int32) + n * SIZE
        return {"index": index, "context": rng.normal(size=(SIZE, 3, 8)).astype(np.float32)}

    return loss_fn, net_params(), batch


def clip(layout):
    """A loss in which the examples meet each other."""
    text, vision = replace(NARROW.text, layers=1), replace(NARROW_VISION, layers=1)
    shapes = {"text": param_shapes(text), "vision": param_shapes(vision)}
    params = drawn(shapes, 0.5) | {
        "text_projection": drawn(np.empty((text.width, vision.projection)), 0.5),
        "logit_scale": np.float32(2.0),
    }

    def batch(rng, n):
        ids = rng.integers(0, text.vocab_size, (SIZE, text.length)).astype(np.int32)
        ids[:, -1] = text.eos_token
        return {"pixels": rng.normal(size=(SIZE, 16, 16, 3)).astype(np.float32), "ids": ids}

    return clip_loss(text, vision, layout.gather), params, batch


# layout, replicas, parts, what is trained
KINDS = {
    "pmap": ("pmap", 1, 1, diffusion),
    "fsdp": ("fsdp", 1, 1, diffusion),
    "fsdp x 2 in parts": ("fsdp", 2, 2, diffusion),
    "CLIP, pmap": ("pmap", 1, 1, clip),
    "CLIP, fsdp": ("fsdp", 1, 1, clip),
}
TRIED = {
    "1": ["pmap", "CLIP, pmap"],
    "2": ["pmap", "fsdp"],
    "4": [*KINDS],  # [processes x] devices
    "2 x 2": ["pmap", "fsdp"],
}


def child(out: str, run: str, layouts: str, *where: str):
    """Two steps in every layout, and the draws of the first, on the devices of this process or of several.

    And a run that goes on in the other's.
    """
    from tests.training.test_loop import options, toy

    jax.config.update("jax_disable_most_optimizations", True)
    if where:
        start_processes(where[0], 2, int(where[1]))
    optimizer, found, compiled = optax.sgd(0.1, momentum=0.0), {}, []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    for name in layouts.split(";"):
        kind, replicas, parts, trained = KINDS[name]
        layout = make_layout(kind, replicas)
        loss, params, batch_of = trained(layout)
        train_step = make_train_step(loss, optimizer, 0.9, layout.average, parts)
        make = lambda params: make_state(params, optimizer)
        state = layout.create(make, params, np.uint32(0))
        seeded = lambda state, batch, seed, step=train_step: step(state, batch, jax.random.key(seed))
        step = layout.step(seeded, state)
        spread = {layout.shards(leaf.shape) for leaf in jax.tree.leaves(layout.fetch(state))}
        assert spread == ({1, jax.device_count() // replicas} if kind == "fsdp" else {1})
        if kind == "fsdp" and trained is diffusion:
            kernel = state.params["res"]["conv1"]["kernel"]
            assert kernel.addressable_data(0).size * jax.device_count() == kernel.size * replicas
        for n in range(2):
            batch = batch_of(np.random.default_rng(n), n)
            batch = layout.put(jax.tree.map(lambda leaf: leaf[local_part(SIZE)], batch))
            compiled.clear()
            state, metrics = step(state, batch, np.uint32(5))
            found[f"{name}: compiled {n}"] = sum("backend_compile" in event for event in compiled)
            trees = {"gradient": state.opt_state, "params": state.params, "ema": state.ema, **metrics}
            for what, tree in trees.items():
                for leaf in jax.tree.leaves(tree) if kind == "pmap" else ():
                    copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
                    assert all((copy == copies[0]).all() for copy in copies), f"the devices have their own {what}"
                leaves = jax.tree.leaves(layout.fetch(tree))
                found[f"{name}: {what} {n}"] = np.concatenate([np.ravel(leaf) for leaf in leaves])
    if not where:
        noised = jax.pmap(draw, in_axes=(0, None))(PmapLayout().put(np.arange(SIZE, dtype=np.int32)), jax.random.key(5))
        found |= {f"draw {name}": np.reshape(value, (SIZE, -1)) for name, value in noised._asdict().items()}
    done = max((int(path.name) for path in Path(run).glob("checkpoints/*")), default=0)
    found["run"] = toy(options(run, steps=done + 2, decay="constant"))["w"]
    np.savez(out, devices=jax.device_count(), **found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the names in TRIED; the run of four devices is gone on with on two processes, on two devices and on one."""
    folder, found = tmp_path_factory.mktemp("devices"), {}
    script = "import sys; from tests.devices.test_layouts import child; child(*sys.argv[1:])"
    for name in ("4", "2 x 2", "2", "1"):
        flags = {"JAX_NUM_CPU_DEVICES": name[-1], "JAX_PLATFORMS": "cpu"}
        where = f"127.0.0.1:{free_port()}"
        one = lambda i: [folder / f"{name}, {i}.npz", folder / "run", ";".join(TRIED[name]), where, str(i)]  # noqa: B023
        commands = [one(0), one(1)] if "x" in name else [one(0)[:3]]
        children = [
            subprocess.Popen([sys.executable, "-c", script, *command], cwd=ROOT, env=os.environ | flags)
            for command in commands
        ]
        assert [child.wait() for child in children] == [0] * len(children)
        parts = [dict(np.load(command[0])) for command in commands]
        for part in parts[1:]:
            assert part.keys() == parts[0].keys() and all((part[what] == parts[0][what]).all() for what in part)
        found[name] = parts[0]
        assert found[name]["devices"] == {"2 x 2": 4}.get(name) or int(name)
    return found


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("count, name", [(count, name) for count, names in TRIED.items() for name in names])
def test_gradients_and_parameters_are_those_of_one_device(found, count, name):
    reference, compared = "CLIP, pmap" if "CLIP" in name else "pmap", 0
    for what in [what for what in found[count] if what.startswith(f"{name}: ")]:
        quantity = what.removeprefix(f"{name}: ")
        if quantity.split()[0] in ("gradient", "params", "ema", "loss", "grad_norm", "t"):
            one = found["1"][f"{reference}: {quantity}"]
            difference = np.abs(found[count][what] - one).max() / np.abs(one).max()
            assert difference < 1e-5, f"{what}: {difference}"
            assert np.abs(one).max() > 1e-2
            compared += 1
    assert compared == (10 if "CLIP" in name else 12)


def test_a_second_step_does_not_compile_again(found):
    for count in found.values():
        counts = {what: int(n) for what, n in count.items() if "compiled" in what}
        assert counts and all(n == ("compiled 0" in what) for what, n in counts.items()), counts


def test_noise_is_the_very_same_on_four_devices(found):
    for name in ("x", "t", "target", "weight"):
        np.testing.assert_array_equal(found["4"][f"draw {name}"], found["1"][f"draw {name}"], err_msg=name)
    assert len(np.unique(found["1"]["draw target"][:, 0])) == SIZE, "two examples share their noise"


def test_a_run_of_four_devices_goes_on_on_two_processes_and_on_fewer(found, tmp_path):
    from tests.training.test_loop import options, toy

    whole = toy(options(tmp_path, steps=8, decay="constant"))
    np.testing.assert_allclose(found["1"]["run"], whole["w"], rtol=1e-5)


def test_one_of_two_processes_is_lost(tmp_path):
    """Killed, the other ends too, within --patience; both go on. Told to stop, it tells the other: both end well."""
    script = (
        "import sys; from tests.training.test_loop import *; from sdjax.devices.layouts import *; "
        "from sdjax.devices.processes import *\n"
        "start_processes(sys.argv[1], 2, int(sys.argv[2]), 10)\n"
        "toy(options(sys.argv[3], steps=int(sys.argv[4]), sample_every=0), pause=0.1)"
    )
    flags = {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    records = lambda: (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")

    def start(steps, more):
        """Both, once they have logged that many steps more."""
        before, where = records() if (tmp_path / "metrics.jsonl").exists() else 0, f"127.0.0.1:{free_port()}"
        children = [
            subprocess.Popen(
                [sys.executable, "-c", script, where, str(i), tmp_path, str(steps)],
                cwd=ROOT,
                env=os.environ | flags,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in (0, 1)
        ]
        while not (tmp_path / "metrics.jsonl").exists() or records() < before + more:
            assert all(child.poll() is None for child in children), children[0].communicate()[1]
            time.sleep(0.05)
        return children

    first, second = start(10_000, 5)
    second.kill()
    killed = time.monotonic()
    said = first.communicate(timeout=60)[1]
    assert time.monotonic() - killed < 10 + 10, "--patience 10, and a busy machine's delay"
    assert first.returncode not in (0, None) and "another" in said
    first, second = start(10_000, 3)
    second.terminate()
    assert first.wait(120) == second.wait(120) == 0 and (tmp_path / "PREEMPTED").is_file()
    last = json.loads((tmp_path / "metrics.jsonl").read_bytes().splitlines()[-1])["step"]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == last
    for child in (first, second):
        child.stderr.close()


def test_processes_with_folders_of_their_own_are_refused(tmp_path):
    script = """
import sys
from pathlib import Path
from sdjax.errors import SdjaxError
from sdjax.training.start import check_shared
from sdjax.devices.processes import start_processes
start_processes(sys.argv[1], 2, int(sys.argv[2]), 10)
check_shared(Path(sys.argv[3]))
try:
    check_shared(Path(sys.argv[3 + int(sys.argv[2])]), seconds=0.1)
except SdjaxError as error:
    print(error)
"""
    where, folders = f"127.0.0.1:{free_port()}", [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, where, str(i), *folders],
            cwd=ROOT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
        )
        for i in (0, 1)
    ]
    for child, folder in zip(children, folders, strict=True):
        said = child.communicate(timeout=120)[0].strip().splitlines()[-1]
        assert said.startswith(f"out {folder}: process 1 does not see there what process 0 writes; a folder that all")
    assert not [*folders[0].iterdir(), *folders[1].iterdir()]


def test_process_0_may_take_long_over_what_it_does_alone(tmp_path):
    """The other one stays until the last checkpoint and the export are whole, longer than an orderly end waits (here 1
    s), and so when told to stop. What process 0 cannot write, both refuse."""
    script = """
import signal, sys, time
import jax, pytest
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), shutdown_timeout_seconds=1)
from sdjax.training import loop
from sdjax.training.checkpoint import Checkpoints
from sdjax.errors import SdjaxError
from tests.training.test_loop import options, toy
write = Checkpoints._write
Checkpoints._write = lambda *args: time.sleep(0.3) or write(*args)
settings = options(sys.argv[3], steps=3)
try:
    toy(settings, lambda step, *_: signal.raise_signal(signal.SIGTERM))
except SystemExit as stop:
    print("stopped", stop.code, (settings.out / "PREEMPTED").exists())
toy(settings)
print("whole", (settings.out / "checkpoints" / "3").exists())

def save(model, folder):
    time.sleep(2)
    if model is None:
        raise SdjaxError("no room")
    folder.write_text("export")

loop.save = save
try:
    loop.export(settings, None)
except SdjaxError as error:
    print(error)
loop.export(settings, "model")
"""
    where = f"127.0.0.1:{free_port()}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, where, str(i), tmp_path],
            cwd=ROOT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in (0, 1)
    ]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    for out, _ in said:
        assert "stopped 0 True" in out and "whole True" in out
    assert "no room" in said[0][0] and "process 0 could not write" in said[1][0]
    assert (tmp_path / "export").read_text() == "export"


def test_kernels_and_their_gradients_keep_their_order_on_gpus():
    params = {"kernel": jnp.arange(288.0).reshape(3, 3, 4, 8), "bias": jnp.ones(8)}
    loss = lambda params: sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(PmapLayout().for_loss(params)))
    gradient = jax.jit(jax.grad(loss))
    jax.tree.map(lambda found, leaf: np.testing.assert_array_equal(found, 2 * leaf), gradient(params), params)
    for platform, barriers in {"cuda": 2, "tpu": 0, "cpu": 0}.items():  # a kernel's and its gradient's
        program = jax.export.export(gradient, platforms=[platform])(params).mlir_module()
        assert len(re.findall(r"optimization_barrier .*<288x", program)) == barriers, platform


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    check_batch_size(8)
    for size in (6, 2, 0, -4):
        with pytest.raises(SdjaxError, match=f"batch_size {size}: expected a positive multiple of the 4"):
            check_batch_size(size)


@pytest.mark.parametrize(
    "where, message",
    [
        ((None, 2, 0), "coordinator: is missing"),
        ((None, None, 1), "coordinator: is missing"),
        (("auto", 2, None), "coordinator auto: the cluster tells"),
        (("auto", None, 0), "coordinator auto"),
        (("host", 2, 0), "coordinator host: expected HOST:PORT"),
        (("host:x", 2, 0), "coordinator host:x"),
        (("host:80", None, 0), "num_processes None"),
        (("host:80", 2, None), "process_id None"),
        (("host:80", 2, 2), "process_id 2: expected a number from 0 to 1"),
    ],
)
def test_processes_that_cannot_be_are_refused(where, message):
    with pytest.raises(SdjaxError, match=message):
        start_processes(*where)


def test_unknown_layouts_are_refused():
    with pytest.raises(SdjaxError, match="parallel ddp: expected pmap or fsdp"):
        make_layout("ddp")
    with pytest.raises(SdjaxError, match=f"replicas {jax.device_count() + 1}: expected a divisor"):
        make_layout("fsdp", jax.device_count() + 1)
