"""The jitted stages that every image task is made of, and the model as a denoiser.

The stages are `encode` (VAE encoder), `walk` (the sampler's scan), `decode_clipped` (VAE decoder), and `enlarge` for
hires. The text tower is `text_context` in conditioning/text.py, and the noise is `draw` in diffusion/noise.py.
All are compiled for shapes, config and dtype; `walk` also for guidance_fn and for whether it keeps its trace, `enlarge`
also for the new size. Guidance, eta, seeds, strength and the sampler itself are traced, and so are steps as long as the
plan keeps its padded length (see `sdjax.sampling.plan`).
"""

import math
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.guidance import (
    Denoiser,
    Level,
    at,
    at_timesteps,
    by_level,
    in_interval,
    step_at,
    timesteps_of,
    to_denoiser,
    with_function,
    with_guidance,
    with_known_region,
)
from sdjax.diffusion.noise import Draws, fresh
from sdjax.diffusion.rows import Row
from sdjax.diffusion.sampler import State, sample
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of, needs_nothing_beside
from sdjax.model.functions import beside, embedded_scale, unet_output, vae_pixels, vae_posterior
from sdjax.model.value import StableDiffusion
from sdjax.networks.unet.network import computed_in, time_shifts
from sdjax.nn.layers import precise
from sdjax.nn.tiles import in_tiles
from sdjax.tasks.steering import Steer, steering
from sdjax.types import Array, Cond, Params

#: In latents: the tiles of models that enlarge pictures, and how far two tiles overlap at least.
TILE, OVERLAP = 128, 64


class Guide(NamedTuple):
    """The guidance of a walk; all of it is traced."""

    levels: Array  # [S]: `Plan.levels`
    scales: Array  # [S]: the scale of each step
    low: Array  # []: there is guidance at low <= sigma <= high alone
    high: Array  # []
    rescale: Array  # []
    embedded: Array | None = None  # [S, G]: the scales as a UNet that takes them is given them (LCM)
    control: tuple[Steer, ...] | None = None  # ControlNets and T2I-Adapters


class Known(NamedTuple):
    """What inpainting keeps of the picture, with any model: see `with_known_region` in diffusion/guidance.py."""

    x0: Array  # [B, h, w, C]
    eps: Array  # [B, h, w, C]
    mask: Array  # [B, h, w, 1]: 1 repaints
    first: Array  # []: the first sigma of the walk


@partial(jax.jit, static_argnames=("config", "dtype"))
def encode(params, pixels: Array, *, config: Config, dtype) -> Array:
    """VAE parameters, pixels [B, H, W, 3] -> scaled latents [B, h, w, C], the posterior's mean."""
    return vae_posterior(params, pixels, config.vae, dtype)[0] * config.vae.scaling


def denoiser(
    sd: StableDiffusion,
    cond: Cond | None,
    uncond: Cond | None = None,
    guidance_scale: Level = 1.0,
    rescale: Level = 0.0,
) -> Denoiser:
    """Returns the model as samplers see it, a function (x [B, h, w, 4], sigma) -> x0.

    Use it with `sdjax.sampling`, wrap it, or differentiate it.
    cond: of batch B, as `sdjax.encode_prompt` returns it; None for a model that takes nothing.
    uncond: of the same shape; if given, there is classifier-free guidance.
    guidance_scale, rescale: numbers or functions of sigma, see `with_guidance` in diffusion/guidance.py. A UNet that
        takes the scale itself (LCM) is called with it, and on `cond` alone.
    SdjaxError: an inpainting model, or prompts composed with AND without `uncond`.
    """
    cond = Cond() if cond is None else cond
    if cond.concat is None:
        needs_nothing_beside(sd.config)
    composed = uncond is not None and cond.mix is not None  # prompts joined by AND are composed in guidance
    for name, value in (("cond", None if composed else cond), ("uncond", uncond)):
        if value is not None and sd.config.unet.cross and np.ndim(value.context) != 3:
            raise SdjaxError(
                f"{name}.context has shape {list(np.shape(value.context))}, should be [B, L, D]: prompts composed with "
                "AND need guidance, give uncond"
            )
    config = sd.config
    uncond = uncond and with_zero_vector(config, uncond, cond)
    if config.unet.guidance:  # it takes the scale itself
        features = lambda x, sigma: embedded_scale(sd, jnp.broadcast_to(at(guidance_scale, sigma), len(x)), len(x))
    else:
        features = lambda x, sigma: None
    at_times = lambda x, t, cond, guidance: unet_output(
        sd.params["unet"], beside(x, cond.concat), t, cond.context, config.unet, sd.dtype, cond.vector, guidance
    )
    at_times = at_timesteps(config.schedule, at_times)
    predict = lambda x, sigma, cond: at_times(x, sigma, cond, features(x, sigma))
    if uncond is None or config.unet.guidance:
        return to_denoiser(config.schedule, lambda x, sigma: predict(x, sigma, cond))
    return to_denoiser(config.schedule, with_guidance(predict, uncond, cond, guidance_scale, rescale))


def with_zero_vector(config: Config, uncond: Cond, cond: Cond) -> Cond:
    """Returns unCLIP's unconditional half with a vector of zeros, if it has none; those of other models as they are."""
    if config.unet.vector is None or uncond.vector is not None:
        return uncond
    vector = cond.vector if cond.mix is None else cond.vector[:, 0]
    return uncond._replace(vector=jnp.zeros_like(vector))


def cast_unet(params: Params, dtype) -> Params:
    """Returns UNet parameters as the layers compute with them (`computed_in`); without a copy where they are so."""
    shapes = jax.eval_shape(partial(computed_in, dtype=dtype), params)
    if all(jax.tree.leaves(jax.tree.map(lambda leaf, cast: leaf.dtype == cast.dtype, params, shapes))):
        return params
    return _cast_unet(params, dtype)


_cast_unet = jax.jit(computed_in, static_argnames="dtype")


@partial(jax.jit, static_argnames=("config", "dtype"))
def unet_ahead(params, t: Array, guidance: Array | None = None, *, config: Config, dtype):
    """Computes once what is the same in all steps: UNet parameters, t [R] -> parameters and shifts for `unet_output`.

    guidance: [R, G], for a UNet that takes it.
    The parameters are cast to the computation's dtype; the shifts, [R, C] for each ResBlock, are what t adds there.
    They are None for a UNet that takes a vector, which adds something else for each image.
    """
    with precise(dtype):
        shifts = None if config.unet.takes_vector else time_shifts(params, t, config.unet, dtype, None, guidance)
        return computed_in(params, dtype), shifts


def unet_denoiser(
    params,
    sigmas: Array,
    cond: Cond,
    uncond: Cond,
    guide: Guide,
    known: Known | None = None,
    function: Callable | None = None,
    *,
    config: Config,
    dtype,
) -> Denoiser:
    """Returns the UNet as a denoiser, in all wrappers that the options need. It may be called at `sigmas` [R] alone.

    known: what inpainting keeps, with a model that is not made for it.
    function: guidance_fn.
    """
    enlarges = family_of(config).concat == "lowres"  # such models work on a part as on the whole
    steps = timesteps_of(make_schedule(config.schedule), sigmas)
    guidance = None if guide.embedded is None else guide.embedded[step_at(guide.levels, sigmas)]
    params, shifts = unet_ahead(params, steps, guidance, config=config, dtype=dtype)
    steer = guide.control and steering(guide.control, guide.levels, steps, dtype)

    def predict(x: Array, sigma: Array, cond: Cond) -> Array:
        row = jnp.argmin(jnp.abs(jnp.expand_dims(sigma, -1) - sigmas), axis=-1)
        rows = jnp.broadcast_to(row, x.shape[:1])
        x, time = beside(x, cond.concat), steps[rows] if shifts is None else jax.tree.map(itemgetter(rows), shifts)
        scales = None if guidance is None else guidance[rows]
        more = (steer(x, rows, sigma, cond),) if steer else ()
        output = lambda x: unet_output(params, x, time, cond.context, config.unet, dtype, cond.vector, scales, *more)
        if not enlarges:
            return output(x)
        return in_tiles(output, x, TILE, OVERLAP, math.gcd(config.unet.factor, *x.shape[1:3]), TILE * TILE)

    scale = in_interval(by_level(guide.levels, guide.scales), guide.low, guide.high)
    if guidance is None:
        guided = with_guidance(predict, uncond, cond, scale, guide.rescale)
    else:
        guided = lambda x, sigma: predict(x, sigma, cond)  # the unconditional side is never called
    denoiser = to_denoiser(config.schedule, guided)
    denoiser = denoiser if function is None else with_function(denoiser, function, guide.levels)
    return denoiser if known is None else with_known_region(denoiser, *known)


@partial(jax.jit, static_argnames=("height", "width", "pixels"))
def enlarge(image: Array, height: int, width: int, pixels: bool) -> Array:
    """Enlarges one image to [height, width, C]: latents [h, w, C] bicubic, or pixels with Lanczos and clipped."""
    large = jax.image.resize(image, (height, width, image.shape[-1]), "lanczos3" if pixels else "bicubic")
    return jnp.clip(large, -1.0, 1.0) if pixels else large


@partial(jax.jit, static_argnames=("function", "keep", "config", "dtype"))
def walk(
    params,
    cond: Cond,
    uncond: Cond,
    guide: Guide,
    draws: Draws,
    known: Known | None,
    rows: Row,
    state: State,
    *,
    config: Config,
    dtype,
    function: Callable | None = None,
    keep: bool = False,
):
    """Walks `state` down `rows` with `sampler.sample`. Returns the new state; with `keep` (state, Trace)."""
    denoiser = unet_denoiser(params, rows.sigma, cond, uncond, guide, known, function, config=config, dtype=dtype)
    return sample(rows, denoiser, state, lambda row: fresh(draws, row, state.x.shape[1:]), keep=keep)


@partial(jax.jit, static_argnames=("config", "dtype"))
def decode_clipped(params, latents: Array, *, config: Config, dtype) -> Array:
    """VAE parameters, scaled latents [B, h, w, C] -> float32 pixels [B, H, W, 3], clipped to [-1, 1]."""
    return jnp.clip(vae_pixels(params, latents, config.vae, dtype), -1.0, 1.0)
