"""The noise of images: the key of each example, the noise that walks start from, fresh noise, posterior samples.

Every image draws from a key of its own, so its noise does not depend on the batch or on the device.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sdjax.types import Array, Arrays


@partial(jax.jit, static_argnames="shape")
def initial_noise(seeds: Array, shape: tuple[int, int, int]) -> Array:
    """Returns normal(key(seed)) for every seed: uint32 [B] -> [B, *shape]. An image gets the same bits in any batch."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def posterior_sample(mean: Array, logvar: Array, eps: Array) -> Array:
    """Returns a sample of a Gaussian posterior, made from unit noise: mean + exp(logvar / 2) eps (arXiv 1312.6114)."""
    return mean + jnp.exp(0.5 * logvar) * eps


@jax.jit
def seeded_posterior_sample(mean: Array, logvar: Array, seed: Array) -> Array:
    """Returns `posterior_sample` of a batch. The eps of image i is drawn from the seed `seed` + i alone."""
    seeds = seed + jnp.arange(len(mean), dtype=jnp.uint32)
    return posterior_sample(mean, logvar, initial_noise(seeds, mean.shape[1:]))


class Draws(NamedTuple):
    """The keys that images draw their noise from. The noise is a blend of two, for variations of a picture."""

    keys: Array  # [B]: each image's own key
    others: Array  # [B]: the keys whose noise is blended in
    weight: Array  # []: the share of the others, 0 .. 1


@partial(jax.jit, static_argnames=("stream",))
def image_draws(seeds: Array, other: Array, weight: Array, stream: int | None = None) -> Draws:
    """Returns the Draws of images.

    seeds: uint32 [B].
    other: the seed [] of the noise that is blended in, or one for each image [B].
    weight: its share, 0 .. 1.
    stream: a number that makes draws differ from others of the same seeds; None is the first draw.
    """

    def make(seed):
        return jax.random.key(seed) if stream is None else jax.random.fold_in(jax.random.key(seed), stream)

    return Draws(jax.vmap(make)(seeds), jax.vmap(make)(jnp.full_like(seeds, other)), jnp.float32(weight))


@partial(jax.jit, static_argnames="shape")
def draw(draws: Draws, shape: tuple[int, int, int], first: Array | None = None) -> Array:
    """Returns the noise that walks start from, [B, *shape]: normal(key), blended with the others' noise.

    first: noise [B, *shape] to use in place of the one drawn from `draws.keys`.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))
    return slerp(noise(draws.keys) if first is None else first, noise(draws.others), draws.weight)


def fresh(draws: Draws, row: Array, shape: tuple[int, int, int]) -> Array:
    """Returns the fresh noise of row number `row` of a plan, [B, *shape]."""
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, row), shape))
    return slerp(noise(draws.keys), noise(draws.others), draws.weight)


def slerp(
    a: Float[Arrays, "B h w C"], b: Float[Arrays, "B h w C"], weight: Float[Arrays, "*B"] | float
) -> Float[Array, "B h w C"]:
    """Spherical interpolation of each image's noise, from a (weight 0) to b (weight 1): [B, h, w, C] each.

    The formula is sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b, which keeps the length that unit
    noise has. Where a and b are nearly the same, the interpolation is linear.
    """
    dot = lambda x, y: jnp.sum(x * y, axis=(1, 2, 3), keepdims=True)
    cos = dot(a, b) * jax.lax.rsqrt(dot(a, a) * dot(b, b))
    angle = jnp.arccos(jnp.clip(cos, -0.99999, 0.99999))
    along = lambda w: jnp.sin(w * angle) / jnp.sin(angle)
    near = cos > 0.9999
    mixed = jnp.where(near, 1.0 - weight, along(1.0 - weight)) * a + jnp.where(near, weight, along(weight)) * b
    return jnp.where(weight == 0.0, a, jnp.where(weight == 1.0, b, mixed))


def example_keys(key: Array, index: Array) -> Array:
    """Returns one key for each example: fold_in(key, index), for `index` [B], the examples' global indices."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))
