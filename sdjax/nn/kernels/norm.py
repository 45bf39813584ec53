"""The statistics of group normalisation, computed as each backend does it best."""

import math

import jax.numpy as jnp

from sdjax.types import Array


def two_pass(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance of each channel's group, x [B, ..., C] -> [B, 1, .., C] each. The mean over pixels comes first:
    x keeps its shape, in which its neighbours read it too."""
    mean = of_groups(over_pixels(x), groups)
    return mean, of_groups(over_pixels(jnp.square(x - mean)), groups)


def by_rows(x: Array, groups: int) -> tuple[Array, Array]:
    """The same in one reading, for GPUs, which a sum over all pixels at once leaves half idle and a second pass makes
    write x - mean: variances within rows, of rows in a channel and of channels in a group add up."""
    shape, pixels = (len(x), *[1] * (x.ndim - 2), -1), math.prod(x.shape[1:-1])
    x = x.reshape(len(x), -1, math.gcd(pixels, 2 ** (pixels.bit_length() // 2)), x.shape[-1])
    rows = x.mean(-2, keepdims=True)
    within = jnp.square(x).mean(-2, keepdims=True) - jnp.square(rows)
    channels = over_pixels(rows)
    mean = of_groups(channels, groups)
    variance = of_groups(over_pixels(within + jnp.square(rows - channels)) + jnp.square(channels - mean), groups)
    return mean.reshape(shape), variance.reshape(shape)


def by_squares(x: Array, groups: int) -> tuple[Array, Array]:
    """The same by two sums that do not wait for each other, for TPUs, which compute them as x is made."""
    mean = of_groups(over_pixels(x), groups)
    return mean, jnp.maximum(0.0, of_groups(over_pixels(jnp.square(x)), groups) - jnp.square(mean))


def over_pixels(x: Array) -> Array:
    """[B, ..., C] -> [B, 1, .., C], the mean."""
    return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def of_groups(x: Array, groups: int) -> Array:
    """[B, 1, .., C], the mean of its group in each."""
    means = x.reshape(*x.shape[:-1], groups, -1).mean(-1)
    return jnp.repeat(means, x.shape[-1] // groups, axis=-1)
