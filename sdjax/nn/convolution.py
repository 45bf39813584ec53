"""3x3 convolutions of [B, H, W, C], and the ways in which a CPU or a TPU computes them better than by XLA's own.

All are the same sum, in another order or under another name. What is neither takes XLA's convolution.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sdjax.types import Array


def convolve(x: Array, kernel: Array, stride: int = 1, padding=((1, 1), (1, 1))) -> Array:
    """x [B, H, W, C], kernel [3, 3, C, D] -> [B, H', W', D]."""
    whole, deep = (partial(way, stride=stride, padding=padding) for way in (direct, with_depth))
    b, h, w, channels = x.shape
    small = stride == 1 and padding == ((1, 1), (1, 1)) and channels >= 512 and 5 * h * w <= channels
    ways = {"cpu": as_product if small else whole, "tpu": deep if b < 8 else whole}
    return jax.lax.platform_dependent(x, kernel, **ways, default=whole)


def convolve_enlarged(x: Array, kernel: Array) -> Array:
    """`upsample_nearest` and then `convolve`: [B, H, W, C] -> [B, 2H, 2W, D]."""
    whole = lambda x, kernel: convolve(upsample_nearest(x), kernel)
    if x.shape[1] * x.shape[2] < 64:
        return whole(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_phase, default=whole)


def upsample_nearest(x: Array) -> Array:
    """[B, H, W, C] -> [B, 2H, 2W, C], each pixel repeated."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def direct(x: Array, kernel: Array, stride: int = 1, padding=((1, 1), (1, 1))) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


def with_depth(x: Array, kernel: Array, stride: int = 1, padding=((1, 1), (1, 1))) -> Array:
    """A third axis, one pixel deep. Of a batch below 8 XLA's TPU compiler makes a larger one by cutting pictures along
    their last axis, copies and pads them at every step, and moves three times the bytes; here it finds nothing to cut.
    """
    y = jax.lax.conv_general_dilated(x[:, :, :, None], kernel[:, :, None], (stride, stride, 1), (*padding, (0, 0)),
                                     dimension_numbers=("NHWDC", "HWDIO", "NHWDC"))
    return y[:, :, :, 0]


def as_product(x: Array, kernel: Array) -> Array:
    """The nine neighbours side by side, and one matrix product: on small pictures with many channels, what takes time
    is reading the kernel, and a product reads it once."""
    (_, h, w, channels), padded = x.shape, jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = [padded[:, i:i + h, j:j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(neighbours, -1) @ kernel.reshape(9 * channels, -1)


def by_phase(x: Array, kernel: Array) -> Array:
    """Of an enlarged picture's 3 x 3 neighbours some are the same pixel: for each of the four places in a doubled pixel
    a 2x2 convolution of the small picture is left, with sums of the kernel's rows and columns."""
    def halves(kernel: Array, axis: int) -> list[Array]:
        a, b, c = jnp.split(kernel, 3, axis)
        return [jnp.concatenate([a, b + c], axis), jnp.concatenate([a + b, c], axis)]

    rows = [jnp.stack([direct(x, both, padding=((1 - i, i), (1 - j, j))) for j, both in enumerate(halves(row, 1))], 3)
            for i, row in enumerate(halves(kernel, 0))]
    b, h, w, _ = x.shape
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, -1)
