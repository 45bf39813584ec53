import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from sdjax.devices import cost as measure
from sdjax.devices import tpu
from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15
from sdjax.model.functions import unet_output
from sdjax.networks.table import param_shapes

COUNTED = [360_212_889_600, 1_606_546_882_560]


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_products_and_convolutions_are_counted():
    assert measure.flops(lambda a, b: a @ b, shape(3, 5, 7), shape(7, 11)) == 2 * 3 * 5 * 7 * 11
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert measure.flops(conv, shape(2, 8, 8, 3), shape(3, 3, 3, 5)) == 2 * (2 * 4 * 4 * 5) * 9 * 3


def test_loops_count_as_often_as_they_run_and_branches_once():
    loop = lambda a: jax.lax.scan(lambda a, _: (jnp.tanh(a @ a), None), a, None, 10)[0]
    assert measure.flops(loop, shape(4, 4)) == 10 * 2 * 4**3
    branch = lambda a: jax.lax.cond(a[0, 0] > 0, jax.jit(lambda a: a @ a @ a), lambda a: a @ a, a)
    assert measure.flops(branch, shape(4, 4)) == 2 * 2 * 4**3
    assert measure.flops(jax.checkpoint(lambda a: a @ a), shape(4, 4)) == 2 * 4**3


def test_stable_diffusion_as_torch_counts_it():
    """torch.utils.flop_counter of diffusers' UNet, batch 2, at 256 and 512 pixels: tests/parity/test_measure.py."""
    params = param_shapes(SD15.unet)
    call = lambda side: measure.flops(
        lambda *args: unet_output(*args, SD15.unet), params, shape(2, side, side, 4), shape(2), shape(2, 77, 768)
    )
    assert [call(32), call(64)] == COUNTED


def test_unknown_slices_are_refused():
    with pytest.raises(SdjaxError, match="v9:2x2: not known here"):
        tpu.topology_devices("v9:2x2")


def test_chips_have_peaks():
    assert all(measure.peak_flops(f"TPU {name}") for name in tpu.CHIPS)


PROGRAM = """HloModule jit_f

%fused_computation (param_0: f32[1000,8]) -> f32[1000,8] {
  ROOT %add.1 = f32[1000,8]{1,0:T(8,128)} add(%param_0, %param_0)
}

ENTRY %main.5 (x.1: f32[1000,8], w.1: bf16[8,8]) -> f32[1000,8] {
  %x.1 = f32[1000,8]{1,0:T(8,128)} parameter(0)
  %w.1 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[8,8]{1,0:T(8,128)(2,1)S(1)}, bf16[8,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w.1)
  %fusion = f32[1000,8]{1,0:T(8,128)S(1)} fusion(%x.1), kind=kLoop, calls=%fused_computation
  %copy-done = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  ROOT %dot.3 = f32[1000,8]{1,0:T(8,128)} convolution(%fusion, %copy-done), dim_labels=bf_io->bf
}
"""


def test_traffic_of_main_memory():
    """x into the fusion, w into on-chip memory, and the result out of the product."""
    assert measure.main_memory_traffic(PROGRAM) == 32000 + 128 + 32000
    everywhere = PROGRAM.replace("S(1)", "")
    assert measure.main_memory_traffic(everywhere) == 64000 + 128 + (32000 + 128 + 32000)


def test_what_only_gets_another_name_is_neither_read_nor_written():
    halves = "".join(f"  %half.{i} = f32[500,8]{{1,0:T(8,128)S(1)}} slice-done(%start.{i})\n" for i in range(2))
    both = '  %both = f32[1000,8]{1,0:T(8,128)S(1)} custom-call(%half.0, %half.1), custom_call_target="ConcatBitcast"\n'
    assert measure.renamed(PROGRAM.replace("  %fusion =", halves + both + "  %fusion =")) == 2 * 32000
    assert measure.renamed(PROGRAM) == 0


def test_traffic_of_a_program_compiled_here():
    """y = x w: each of the three once."""
    compiled = jax.jit(lambda x, w: x @ w).lower(shape(64, 32), shape(32, 16)).compile()
    assert measure.main_memory_traffic(compiled.as_text()) == 4 * (64 * 32 + 32 * 16 + 64 * 16)


@pytest.mark.parametrize(
    "said, expected",
    [
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 15.76G of 15.75G hbm. "
            "Exceeded hbm capacity by 7.6M.",
            "15.76G of the chip's 15.75G",
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (16.88G) exceeds available HBM "
            "(15.75G).",
            "16.88G of the chip's 15.75G",
        ),
        ("In another way.", "RESOURCE_EXHAUSTED: In another way."),
    ],
)
def test_what_does_not_fit_is_refused(said, expected):
    def fail():
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    with pytest.raises(SdjaxError, match=f"does not fit, the program needs {expected}"):
        tpu.compile_lowered(SimpleNamespace(compile=fail))


def test_cycles_are_the_compilers_of_what_is_not_inside_of_fusions():
    told = lambda count: f', backend_config={{"estimated_cycles":"{count}"}}\n'
    program = re.sub(r"(param_0\)|bf_io->bf)\n", lambda found: found[1] + told(7), PROGRAM)
    program = program.replace("calls=%fused_computation\n", "calls=%fused_computation" + told(1000))
    assert measure.cycles(PROGRAM) == 0 and program.count("estimated_cycles") == 3
    assert measure.cycles(program) == 1007


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        *(("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA L40", None), ("NVIDIA L40G", None)),
        *(("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100-PCIE-40GB", 312), ("NVIDIA A100 80GB PCIe", 312)),
        *(
            ("NVIDIA RTX A1000 Laptop GPU", None),
            ("NVIDIA RTX A4000", None),
            ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ),
        *(
            ("NVIDIA A10", 125),
            ("NVIDIA A10G", None),
            ("Tesla T4", 65),
            ("NVIDIA T400", None),
            ("Tesla T40 24GB", None),
        ),
        *(("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", None), ("NVIDIA H200", 989)),
        *(("NVIDIA GH200 480GB", None), ("NVIDIA B200", 2250), ("NVIDIA GB200", None), ("Tesla V100-SXM2-16GB", 125)),
        *(("NVIDIA GeForce RTX 4090", 165), ("NVIDIA GeForce RTX 4090 Laptop GPU", None)),
        *(("NVIDIA GeForce RTX 3090", 71), ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 3090 Ti", None)),
        *(("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v4", 275)),
        *(("TPU v4i", None), ("cpu", None), ("", None)),
    ],
)
def test_a_device_has_its_own_peak_or_none(kind, teraflops):
    assert measure.peak_flops(kind) == (None if teraflops is None else teraflops * 1e12)
