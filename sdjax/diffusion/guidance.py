"""One denoiser contract, (x, sigma) -> x0, and the conversions and wrappers that lead to it.

x is variance preserving, x = alpha x0 + s eps; sigma names the noise level and gives both weights:

    alpha = sqrt(abar) = 1 / sqrt(1 + sigma^2),      s = sqrt(1 - abar) = sigma alpha,      alpha^2 + s^2 = 1
    v = alpha eps - s x0   (arXiv 2202.00512, section 4)

sigma is a scalar or [B]. Samplers see denoisers only, and know nothing of what is wrapped in one:

    unet (x, t, cond) -> at_timesteps -> with_channels -> with_guidance -> to_denoiser
                                                                        -> with_function -> with_known_region

A predictor, (x, sigma) -> the UNet's raw output, is what guidance acts on (CompVis `ddim.py`). Every wrapper is a pure
function; what it holds may be traced. Numbers that change on the way down are functions of sigma: `by_level` makes one
of a table over steps, `in_interval` another of a number.
"""

from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp

from sdjax.diffusion.prediction import PREDICTIONS, add_noise
from sdjax.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule, sigma_to_t
from sdjax.errors import SdjaxError
from sdjax.types import Array, Cond

Denoiser = Callable[[Array, Array], Array]  # (x [B, h, w, C], sigma [] or [B]) -> x0 [B, h, w, C]

Predictor = Callable[..., Array]  # (x [B, h, w, C], sigma [] or [B], and a Cond before guidance) -> eps, v or x0

Level = Array | float | Callable[[Array], Array]  # a number, or one for each sigma


def timesteps_of(schedule: NoiseSchedule, sigma: Array) -> Array:
    """t of sigma, of the same shape, as models are called with it."""
    t = sigma_to_t(schedule, sigma, jnp)
    whole = jnp.round(t)  # float32 logarithms miss whole timesteps by 1e-4; models were trained on whole ones
    return jnp.where(jnp.abs(t - whole) < 1e-3, whole, t)


def at_timesteps(config: ScheduleConfig, predict: Callable[..., Array]) -> Predictor:
    """A model of (x, t [B], ...) as a predictor of (x, sigma, ...)."""
    schedule = make_schedule(config)
    return lambda x, sigma, *rest: predict(x, jnp.broadcast_to(timesteps_of(schedule, sigma), x.shape[:1]), *rest)


def to_denoiser(config: ScheduleConfig, predict: Predictor) -> Denoiser:
    """A denoiser from raw outputs of kind `config.prediction`. SdjaxError on a kind that is not in PREDICTIONS."""
    if config.prediction not in PREDICTIONS:
        raise SdjaxError(f"prediction {config.prediction!r}: one of {', '.join(PREDICTIONS)}")
    return lambda x, sigma: PREDICTIONS[config.prediction].to_x0(x, predict(x, sigma), sigma)


# ---- numbers that change with the noise level


def at(level: Level, sigma: Array) -> Array:
    """The number that `level` is at `sigma`: [], or [B] where that is one for each image."""
    return jnp.asarray(level(sigma) if callable(level) else level)


def for_images(value: Array, like: Array) -> Array:
    """A number, or one for each image [B], shaped to multiply `like` [B, ...]."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


def step_at(levels: Array, sigma: Array) -> Array:
    """The number of the step that starts at `sigma`, [] or [B], or contains it. levels [S] fall; zeros at the end are
    none."""
    return jnp.clip(jnp.sum(levels > jnp.expand_dims(sigma, -1), axis=-1), 0, jnp.sum(levels > 0) - 1)


def by_level(levels: Array, values: Array) -> Callable[[Array], Array]:
    """values[n] from levels[n] down to the next one; both [S]."""
    return lambda sigma: jnp.asarray(values)[step_at(levels, sigma)]


def in_interval(scale: Level, low: Array, high: Array) -> Callable[[Array], Array]:
    """`scale` where low <= sigma <= high, elsewhere 1: guidance in a limited interval, Eq. 5 of arXiv 2404.07724."""
    return lambda sigma: jnp.where((low <= sigma) & (sigma <= high), at(scale, sigma), 1.0)


# ---- wrappers


def with_channels(predict: Predictor, extra: Array) -> Predictor:
    """Appends `extra` [B, h, w, C'] to x: the concatenated conditioning of inpainting models, guided and not alike."""
    return lambda x, *rest: predict(jnp.concatenate([x, jnp.tile(extra, (len(x) // len(extra), 1, 1, 1))], -1), *rest)


def with_guidance(predict: Predictor, uncond: Cond, cond: Cond, scale: Level, rescale: Level = 0.0) -> Predictor:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u), one call on the batch [uncond, cond].

    `scale`: traced, [], or a function of sigma. Where it is 1 only `cond` is called, on its part of the batch. Where
    cond holds composed prompts c_i, c is u + sum mix_i (c_i - u): composable diffusion (arXiv 2206.01714).
    `rescale` phi brings each image's standard deviation back to c's, by that share: Eq. 15 and 16 of arXiv 2305.08891.
    """
    mix, conds = cond.mix, [cond]
    if mix is not None:
        conds = [Cond(jax.tree.map(itemgetter((slice(None), i)), cond.context)) for i in range(mix.shape[1])]
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
    """x0 = function(x, x0, step), step counted from 0 on `levels` [S]: guidance of one's own.

    It may differentiate: x0 - 0.1 jax.grad(loss)(x0) pulls towards a small loss.
    """
    return lambda x, sigma: function(x, denoiser(x, sigma), step_at(levels, sigma))


def with_known_region(denoiser: Denoiser, x0: Array, eps: Array, mask: Array, first: Array) -> Denoiser:
    """Inpainting with any model: where `mask` [B, h, w, 1] is 0, x is what is known of it, alpha x0 + s eps.

    Not at the `first` sigma of the walk, whose x is given: pure noise at full strength. diffusers'
    `pipeline_stable_diffusion_inpaint.py` does it after each step, which for a mask of zeros and ones is the same.
    """

    def known(x: Array, sigma: Array) -> Array:
        x = jnp.where(for_images(sigma, x) < first, mask * x + (1.0 - mask) * add_noise(x0, eps, sigma), x)
        return mask * denoiser(x, sigma) + (1.0 - mask) * x0

    return known
