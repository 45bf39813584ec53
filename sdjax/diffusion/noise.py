"""All randomness: the keys of each example, the noise that walks start from, fresh noise, samples of a posterior."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax.types import Array


@partial(jax.jit, static_argnames="shape")
def initial_noise(seeds: Array, shape: tuple[int, int, int]) -> Array:
    """normal(key(seed)) for every seed, uint32 [B] -> [B, *shape]: the same bits in any batch."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def posterior_sample(mean: Array, logvar: Array, eps: Array) -> Array:
    """A sample of a Gaussian posterior from unit noise: mean + exp(logvar / 2) eps (arXiv 1312.6114)."""
    return mean + jnp.exp(0.5 * logvar) * eps


@jax.jit
def seeded_posterior_sample(mean: Array, logvar: Array, seed: Array) -> Array:
    """`posterior_sample` of a batch; eps of image i is drawn from seed + i alone."""
    seeds = seed + jnp.arange(len(mean), dtype=jnp.uint32)
    return posterior_sample(mean, logvar, initial_noise(seeds, mean.shape[1:]))


class Draws(NamedTuple):
    """What images draw their noise from: the key of each, and one that is blended in by `weight`, 0 .. 1."""

    keys: Array  # [B]
    others: Array  # [B]
    weight: Array  # []


@partial(jax.jit, static_argnames=("stream",))
def image_draws(seeds: Array, other: Array, weight: Array, stream: int | None = None) -> Draws:
    """seeds uint32 [B], another seed [] and its weight. `stream` numbers draws apart from those of the same seeds."""

    def make(seed):
        return jax.random.key(seed) if stream is None else jax.random.fold_in(jax.random.key(seed), stream)

    return Draws(jax.vmap(make)(seeds), jax.vmap(make)(jnp.full_like(seeds, other)), jnp.float32(weight))


@partial(jax.jit, static_argnames="shape")
def draw(draws: Draws, shape: tuple[int, int, int], first: Array | None = None) -> Array:
    """The noise that walks start from, [B, *shape]: normal(key(seed)), or `first` in its place."""
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))
    return slerp(noise(draws.keys) if first is None else first, noise(draws.others), draws.weight)


def fresh(draws: Draws, row: Array, shape: tuple[int, int, int]) -> Array:
    """Fresh noise at one row of a plan, [B, *shape]."""
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, row), shape))
    return slerp(noise(draws.keys), noise(draws.others), draws.weight)


def slerp(a: Array, b: Array, weight: Array) -> Array:
    """Spherical interpolation of each image's noise from a (0) to b (1), [B, h, w, C]: its length stays noise's.

    sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b; a straight line where both are the same.
    """
    dot = lambda x, y: jnp.sum(x * y, axis=(1, 2, 3), keepdims=True)
    cos = dot(a, b) * jax.lax.rsqrt(dot(a, a) * dot(b, b))
    angle = jnp.arccos(jnp.clip(cos, -0.99999, 0.99999))
    along = lambda w: jnp.sin(w * angle) / jnp.sin(angle)
    near = cos > 0.9999
    mixed = jnp.where(near, 1.0 - weight, along(1.0 - weight)) * a + jnp.where(near, weight, along(weight)) * b
    return jnp.where(weight == 0.0, a, jnp.where(weight == 1.0, b, mixed))


def example_keys(key: Array, index: Array) -> Array:
    """One key an example: fold_in(key, global example index)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))
