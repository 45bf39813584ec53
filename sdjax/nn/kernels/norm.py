"""The statistics of group normalisation, computed in the way that suits each backend."""

import math

import jax.numpy as jnp

from sdjax.types import Array


def two_pass(x: Array, groups: int) -> tuple[Array, Array]:
    """Returns mean and variance of each channel's group: x [B, ..., C] -> [B, 1, .., C] each.

    It averages over the pixels first. That way x keeps its shape, which is the shape its other readers take.
    """
    mean = of_groups(over_pixels(x), groups)
    return mean, of_groups(over_pixels(jnp.square(x - mean)), groups)


def by_rows(x: Array, groups: int) -> tuple[Array, Array]:
    """The same statistics with one reading of x, for GPUs.

    A sum over all pixels at once would leave a GPU half idle, and a second pass would make it write x - mean. The
    variances within rows, between the rows of a channel and between the channels of a group add up.
    """
    shape, pixels = (len(x), *[1] * (x.ndim - 2), -1), math.prod(x.shape[1:-1])
    x = x.reshape(len(x), -1, math.gcd(pixels, 2 ** (pixels.bit_length() // 2)), x.shape[-1])
    rows = x.mean(-2, keepdims=True)
    within = jnp.square(x).mean(-2, keepdims=True) - jnp.square(rows)
    channels = over_pixels(rows)
    mean = of_groups(channels, groups)
    variance = of_groups(over_pixels(within + jnp.square(rows - channels)) + jnp.square(channels - mean), groups)
    return mean.reshape(shape), variance.reshape(shape)


def by_squares(x: Array, groups: int) -> tuple[Array, Array]:
    """The same statistics from two independent sums, for TPUs, which compute both while x is being made."""
    mean = of_groups(over_pixels(x), groups)
    return mean, jnp.maximum(0.0, of_groups(over_pixels(jnp.square(x)), groups) - jnp.square(mean))


def over_pixels(x: Array) -> Array:
    """Returns the mean over the pixels: [B, ..., C] -> [B, 1, .., C]."""
    return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def of_groups(x: Array, groups: int) -> Array:
    """Returns for each channel the mean of its group: [B, 1, .., C] -> the same shape."""
    means = x.reshape(*x.shape[:-1], groups, -1).mean(-1)
    return jnp.repeat(means, x.shape[-1] // groups, axis=-1)
