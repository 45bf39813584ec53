"""The denoiser contract, (x, sigma) -> x0, and the conversions and wrappers that turn a network into a denoiser.

x is variance preserving, x = alpha x0 + s eps. sigma is the noise level, a scalar or [B], and gives both weights:

    alpha = sqrt(abar) = 1 / sqrt(1 + sigma^2),      s = sqrt(1 - abar) = sigma alpha,      alpha^2 + s^2 = 1
    v = alpha eps - s x0   (arXiv 2202.00512, section 4)

Samplers call a denoiser and do not know what is wrapped in it. The functions here are applied in this order:

    unet (x, t, cond) -> at_timesteps -> with_guidance -> to_denoiser -> with_function -> with_known_region

The three `with_*` are optional. tasks/stages.py replaces `at_timesteps` where all sigmas are known ahead. Guidance acts
on a predictor, (x, sigma) -> the UNet's raw output, as in CompVis `ddim.py`. Every wrapper is a pure function, and the
values that it holds may be traced. A number that changes with the noise level is a function of sigma: `by_level` makes
one from a table over steps, and `in_interval` limits a number or such a function to an interval.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from sdjax.diffusion.prediction import PREDICTIONS, add_noise
from sdjax.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule, sigma_to_t
from sdjax.errors import SdjaxError
from sdjax.types import Array, Cond

Denoiser = Callable[[Array, Array], Array]  # (x [B, h, w, C], sigma [] or [B]) -> x0 [B, h, w, C]

Predictor = Callable[..., Array]  # (x [B, h, w, C], sigma [] or [B], and a Cond before guidance) -> eps, v or x0

Level = Array | float | Callable[[Array], Array]  # a number, or a function of sigma


def timesteps_of(schedule: NoiseSchedule, sigma: ArrayLike, xp: ModuleType = jnp) -> Any:
    """Returns the timesteps t that a model is called with at noise level sigma, in the shape of sigma.

    xp: jax.numpy, or numpy outside of traces.
    """
    t = sigma_to_t(schedule, sigma, xp)
    whole = xp.round(t)  # float32 logarithms miss whole timesteps by 1e-4, and models were trained on whole ones
    return xp.where(xp.abs(t - whole) < 1e-3, whole, t)


def at_timesteps(config: ScheduleConfig, predict: Callable[..., Array]) -> Predictor:
    """Turns a model that takes (x, t [B], ...) into a predictor that takes (x, sigma, ...)."""
    schedule = make_schedule(config)
    return lambda x, sigma, *rest: predict(x, jnp.broadcast_to(timesteps_of(schedule, sigma), x.shape[:1]), *rest)


def to_denoiser(config: ScheduleConfig, predict: Predictor) -> Denoiser:
    """Turns a predictor whose output is of the kind `config.prediction` (eps, v or x0) into a denoiser.

    SdjaxError: the kind is not in PREDICTIONS.
    """
    if config.prediction not in PREDICTIONS:
        raise SdjaxError(f"prediction {config.prediction!r}: one of {', '.join(PREDICTIONS)}")
    return lambda x, sigma: PREDICTIONS[config.prediction].to_x0(x, predict(x, sigma), sigma)


# ---- numbers that change with the noise level


def at(level: Level, sigma: Array) -> Array:
    """Returns the value of `level` at `sigma`: [], or [B] if there is one value for each image."""
    return jnp.asarray(level(sigma) if callable(level) else level)


def for_images(value: Array, like: Array) -> Array:
    """Reshapes a number, or one number for each image [B], so that it multiplies `like` [B, ...]."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


def step_at(levels: Array, sigma: Array) -> Array:
    """Returns the index of the step that starts at `sigma` or contains it, in the shape of sigma, [] or [B].

    levels [S]: the falling sigmas at which steps start. Zeros at the end are padding, not steps.
    """
    return jnp.clip(jnp.sum(levels > jnp.expand_dims(sigma, -1), axis=-1), 0, jnp.sum(levels > 0) - 1)


def by_level(levels: Array, values: Array) -> Callable[[Array], Array]:
    """Returns a function of sigma that is values[n] from levels[n] down to levels[n + 1]. Both are [S]."""
    return lambda sigma: jnp.asarray(values)[step_at(levels, sigma)]


def in_interval(scale: Level, low: Array, high: Array) -> Callable[[Array], Array]:
    """Returns a function of sigma that is `scale` where low <= sigma <= high, and 1 elsewhere.

    This is guidance in a limited interval, Eq. 5 of arXiv 2404.07724.
    """
    return lambda sigma: jnp.where((low <= sigma) & (sigma <= high), at(scale, sigma), 1.0)


# ---- wrappers


def composed_part(cond: Cond, i: int) -> Cond:
    """Returns number i of the prompts that a Cond composes. What stands beside x belongs to all of them."""
    part = lambda leaf: leaf[:, i]
    context, vector = jax.tree.map(part, cond.context), jax.tree.map(part, cond.vector)
    return cond._replace(context=context, vector=vector, mix=None)


def with_guidance(predict: Predictor, uncond: Cond, cond: Cond, scale: Level, rescale: Level = 0.0) -> Predictor:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u), with one model call on the batch [uncond, cond].

    uncond: without channels of its own it takes cond's, and without a vector cond's: a map, a mask, a level of noise
        are the same on both sides.
    cond: if it holds composed prompts c_i (`cond.mix`), c is u + sum mix_i (c_i - u), which is composable diffusion
        (arXiv 2206.01714).
    scale: a number (it may be traced) or a function of sigma. If it is 1 for all images and there are no composed
        prompts, the model is called on `cond` alone.
    rescale: phi in Eq. 15 and 16 of arXiv 2305.08891: the share, 0 .. 1, by which each image's standard deviation is
        brought back to that of c.
    """
    mix, conds = cond.mix, [cond]
    if mix is not None:
        conds = [composed_part(cond, i) for i in range(mix.shape[1])]
    uncond = uncond._replace(
        mix=None,
        concat=cond.concat if uncond.concat is None else uncond.concat,
        vector=conds[0].vector if uncond.vector is None else uncond.vector,
    )
    everything = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), uncond, *conds)

    def guide(x: Array, sigma: Array, scale: Array) -> Array:
        times = 1 + len(conds)
        sigmas = jnp.tile(sigma, times) if jnp.ndim(sigma) else sigma
        u, *cs = jnp.split(predict(jnp.concatenate([x] * times), sigmas, everything), times)
        c = cs[0] if mix is None else u + sum(mix[:, i, None, None, None] * (c - u) for i, c in enumerate(cs))
        scale = for_images(scale, x)
        out, axes = jnp.where(scale == 1.0, c, u + scale * (c - u)), tuple(range(1, x.ndim))
        ratio = jnp.std(c, axes, keepdims=True) / jnp.maximum(jnp.std(out, axes, keepdims=True), 1e-20)
        return out * (1.0 + for_images(at(rescale, sigma), x) * (ratio - 1.0))

    def guided(x: Array, sigma: Array) -> Array:
        value = at(scale, sigma)
        if mix is not None:
            return guide(x, sigma, value)
        return jax.lax.cond(
            jnp.all(value == 1.0), lambda x: predict(x, sigma, cond), lambda x: guide(x, sigma, value), x
        )

    return guided


def with_function(denoiser: Denoiser, function: Callable[[Array, Array, Array], Array], levels: Array) -> Denoiser:
    """Replaces the denoiser's x0 by function(x, x0, step). Use it for guidance of your own.

    function: it may differentiate: x0 - 0.1 jax.grad(loss)(x0) pulls towards a small loss.
    levels: [S], the sigmas at which steps start; `step` counts from 0 along them.
    """
    return lambda x, sigma: function(x, denoiser(x, sigma), step_at(levels, sigma))


def with_known_region(denoiser: Denoiser, x0: Array, eps: Array, mask: Array, first: Array) -> Denoiser:
    """Inpainting with any model: keeps the known region of a picture, and lets the denoiser paint the rest.

    Where the mask is 0, x is replaced by the known alpha x0 + s eps before the denoiser is called, and its result by
    the known x0. x is not replaced at the first sigma of the walk, since the x given there is pure noise at full
    strength. diffusers' `pipeline_stable_diffusion_inpaint.py` does this after each step, which gives the same for a
    mask of zeros and ones.

    x0, eps: the known latents and their noise, [B, h, w, C] each.
    mask: [B, h, w, 1], 1 where the picture is painted.
    first: the sigma at which the walk starts.
    """

    def known(x: Array, sigma: Array) -> Array:
        x = jnp.where(for_images(sigma, x) < first, mask * x + (1.0 - mask) * add_noise(x0, eps, sigma), x)
        return mask * denoiser(x, sigma) + (1.0 - mask) * x0

    return known
