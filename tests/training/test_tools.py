"""train/compile_for.py and train/benchmark.py: refusals, what they print, and what needs neither TPU nor torch."""

import importlib.util
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.commands import compile_for
from sdjax.commands import train_benchmark as benchmark
from sdjax.commands.command_line import flag_names
from sdjax.errors import SdjaxError, with_flags
from tests.scripts import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The smallest model under a preset's name."""
    monkeypatch.setitem(sys.modules["sdjax.families.table"].NAMED, "EMOJI", CONFIG)


@pytest.fixture
def chips(monkeypatch):
    """This machine's devices instead of a TPU's."""
    monkeypatch.setattr(compile_for, "topology_devices", lambda name: jax.devices())


def test_compile_for_prints_what_a_step_takes(chips, capsys):
    settings = compile_for.Options("v5e:2x2", "EMOJI", batch_size=4, parallel="pmap", accumulate=2, chips=1)
    compile_for.main(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["devices", "parameters", "state", "memory", "arithmetic", "time"]
    assert " a chip: arguments " in lines[3] and " TFLOP a chip and step, " in lines[4] and " clock cycles " in lines[5]
    assert lines[0].split()[1] == "1" and len(lines) == 6, "one device has nobody to talk to"


HLO = """
  %ar = (f32[8,4]{1,0:T(8,128)}, bf16[]) all-reduce(%a, %b), replica_groups={}
  %ag = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%a), dimensions={0}
  %agd = bf16[8,4]{1,0} all-gather-done(%ag)
  %ag2 = s8[100]{0} all-gather(%c)
  %cp = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%d)
  ROOT %add = f32[8]{0} add(%all-reduce.1, %ar)
"""


def test_collectives_are_counted_with_their_results_bytes():
    assert compile_for.collectives(HLO) == {
        "all-gather": (2, 8 * 4 * 2 + 100),
        "all-reduce": (1, 8 * 4 * 4 + 2),
        "collective-permute": (1, 64),
    }
    assert compile_for.collectives("") == {}
    mesh = Mesh(np.array(jax.devices()), ("x",))
    whole = jax.jit(jnp.sum, in_shardings=NamedSharding(mesh, PartitionSpec("x")))
    text = whole.lower(jax.ShapeDtypeStruct((16,), jnp.float32)).compile().as_text()
    found = compile_for.collectives(text)
    assert found == ({"all-reduce": (1, 4)} if jax.device_count() > 1 else {})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "SD3"}, "--model SD3: expected one of "),
        ({"parallel": "tp"}, "--parallel tp: expected pmap or fsdp"),
        ({"chips": 0}, "--chips 0: expected 1 to "),
        ({"dtype": "float16"}, "--dtype float16"),
        ({"size": -1}, "--size -1: expected a positive multiple of 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"size": 0}, "--size 0: expected a positive multiple of 1"),
        ({"model": "SD15_INPAINT"}, "--model SD15_INPAINT: its UNet has 9 input channels; .* the VAE's latents, 4"),
        ({"replicas": 77}, "--replicas 77"),
        ({"replicas": 2, "parallel": "pmap"}, "--replicas 2: needs --parallel fsdp"),
        ({"optimizer": "sgd"}, "--optimizer"),
    ],
)
def test_compile_for_refuses(chips, changes, message):
    settings = {"topology": "v5e:2x2", "model": "EMOJI", "batch_size": 8} | changes
    with pytest.raises(SdjaxError) as caught:
        compile_for.main(compile_for.Options(**settings))
    assert re.search(message, with_flags(str(caught.value), flag_names(compile_for.Options)))


def test_a_topology_that_is_not_known_is_one_line(script, capfd, monkeypatch):
    """Without libtpu none is."""
    for name in (
        "TPU_SKIP_MDS_QUERY",
        "ALLOW_MULTIPLE_LIBTPU_LOAD",
        "TPU_STDERR_LOG_LEVEL",
        "TPU_ACCELERATOR_TYPE",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.setenv(name, "")  # to be given back
        monkeypatch.delenv(name)
    name = "v5e:2x2" if importlib.util.find_spec("libtpu") is None else "v99:2x2"
    assert script("train/compile_for.py", "--topology", name, "--model", "EMOJI") == 2
    said = capfd.readouterr()
    assert said.err.splitlines()[-1].startswith(f"error: --topology {name}: not known here (")
    assert "expected such as v5e:8x8, and the extra tpu installed" in said.err and not said.out


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed")
@pytest.mark.slow
def test_a_tpu_s_program_says_how_its_chips_talk(capsys):
    compile_for.main(compile_for.Options("v5e:2x2", "EMOJI", batch_size=8))
    said = capsys.readouterr().out
    assert "devices     4 x TPU v5" in said and "all-gather" in said


def test_the_benchmark_needs_torch(script, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert script("train/benchmark.py") == 2
    said = capfd.readouterr()
    assert "install the extra parity" in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 0}, "--size 0: expected a positive multiple of 1"),
        ({"size": 60, "model": "SD21"}, "--size 60: expected a positive multiple of 64"),
        ({"model": "SD15_INPAINT"}, "--model SD15_INPAINT: its UNet has 9 input channels"),
        ({"batch_size": 3}, "--batch-size 3: expected a positive multiple of the 2 devices"),
        ({"parallel": "tp"}, "--parallel tp: expected pmap or fsdp"),
        ({"steps": 0}, "--steps 0: expected at least 1"),
    ],
)
def test_the_benchmark_refuses(monkeypatch, changes, message):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(SdjaxError) as caught:
        benchmark.main(benchmark.Options(**changes))
    assert re.search(message, with_flags(str(caught.value), flag_names(benchmark.Options)))


def test_our_half_of_the_benchmark():
    config, options = CONFIG, benchmark.Options("EMOJI", batch_size=2 * jax.device_count())
    batch = benchmark.random_batch(config, options.batch_size)
    assert batch.moments.shape == (options.batch_size, 8, 8, 8) and batch.context.shape[1:] == (12, 24)
    params = jax.tree.map(np.asarray, jax.jit(benchmark.initial_params, static_argnums=(0, 1))(config, "unet", 0))
    first, each, note = benchmark.time_steps(lambda: benchmark.ours(options, config, params, batch), 3)
    assert 0 < each < first and re.fullmatch(r" +[\d,]+ GFLOP/s a device, \d+% of a matrix product's", note)


def test_measure_is_the_median_and_waits_for_the_step_before(monkeypatch):
    clock = iter(np.cumsum([0, 50, 0, 9, 0, 1, 0, 2, 0, 3]).tolist())
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    events, number = [], iter("abcdefgh")

    def step():
        name = next(number)
        events.append(name)
        return lambda: events.append(name.upper())

    assert benchmark.time_steps(lambda: (step, lambda seconds: f"{seconds}"), 3) == (50, 2, "2.0")
    assert "".join(events) == "aAbcBdCeDfEF"
