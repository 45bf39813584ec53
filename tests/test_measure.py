import jax
import jax.numpy as jnp
import pytest

from sdjax import measure
from sdjax.config import SD15
from sdjax.errors import SdjaxError
from sdjax.model import unet_output
from sdjax.weights.convert import param_shapes

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
    call = lambda side: measure.flops(lambda *args: unet_output(*args, SD15.unet), params, shape(2, side, side, 4),
                                      shape(2), shape(2, 77, 768))
    assert [call(32), call(64)] == COUNTED


def test_unknown_slices_are_refused():
    with pytest.raises(SdjaxError, match="v9:2x2: not known here"):
        measure.topology_devices("v9:2x2")


def test_chips_have_peaks():
    assert all(measure.peak_flops(f"TPU {name}") for name in measure.CHIPS)
