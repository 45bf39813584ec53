"""The jitted stages that every image task is made of, static in shapes, config and dtype alone.

`encode` (VAE encoder), `draw` (noise), `walk` (the sampler's scan), `finish` (VAE decoder); `model.text_context` is the
text tower. Guidance, eta, seeds, strength, steps and the sampler itself are traced.
"""

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
    at_timesteps,
    by_level,
    in_interval,
    timesteps_of,
    to_denoiser,
    with_channels,
    with_function,
    with_guidance,
    with_known_region,
)
from sdjax.diffusion.noise import Draws, fresh
from sdjax.diffusion.sampler import State, sample
from sdjax.diffusion.schedule import make_schedule
from sdjax.diffusion.tables import Row
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import refuse_inpainting
from sdjax.model.functions import unet_output, vae_pixels, vae_posterior
from sdjax.model.value import StableDiffusion
from sdjax.networks.unet.network import computed_in, time_shifts
from sdjax.nn.layers import precise
from sdjax.types import Array, Cond, Params


class Guide(NamedTuple):
    """Guidance of a walk, all of it traced."""

    levels: Array  # [S]: `Plan.levels`
    scales: Array  # [S]: one a step
    low: Array  # []: sigmas between which there is any
    high: Array  # []
    rescale: Array  # []


class Known(NamedTuple):
    """What inpainting with any model keeps: see `denoise.with_known_region`."""

    x0: Array  # [B, h, w, C]
    eps: Array  # [B, h, w, C]
    mask: Array  # [B, h, w, 1]: 1 repaints
    first: Array  # []


@partial(jax.jit, static_argnames=("config", "dtype"))
def encode(params, pixels: Array, *, config: Config, dtype) -> Array:
    """Pixels -> scaled latents, the posterior's mean."""
    return vae_posterior(params, pixels, config.vae, dtype)[0] * config.vae.scaling


def denoiser(
    sd: StableDiffusion, cond: Cond, uncond: Cond | None = None, guidance_scale: Level = 1.0, rescale: Level = 0.0
) -> Denoiser:
    """(x [B, h, w, 4], sigma) -> x0: the model as samplers see it, to be wrapped, differentiated or walked with.

    cond: `sdjax.encode_prompt`'s, of batch B. With `uncond`, of the same shape, guided by guidance_scale, a number or a
    function of sigma (see guidance.py). SdjaxError: inpainting models, and prompts composed with AND without `uncond`.
    """
    refuse_inpainting(sd.config)
    composed = uncond is not None and cond.mix is not None  # guidance composes the prompts of an AND
    for name, value in (("cond", None if composed else cond), ("uncond", uncond)):
        if value is not None and np.ndim(value.context) != 3:
            raise SdjaxError(
                f"{name}.context has shape {list(np.shape(value.context))}, should be [B, L, D]: prompts composed with "
                "AND need guidance, give uncond"
            )
    config = sd.config
    predict = lambda x, t, cond: unet_output(sd.params["unet"], x, t, cond.context, config.unet, sd.dtype)
    predict = at_timesteps(config.schedule, predict)
    if uncond is None:
        return to_denoiser(config.schedule, lambda x, sigma: predict(x, sigma, cond))
    return to_denoiser(config.schedule, with_guidance(predict, uncond, cond, guidance_scale, rescale))


def cast_unet(params: Params, dtype) -> Params:
    """Returns UNet parameters as the layers compute with them (`computed_in`); without a copy where they are so."""
    shapes = jax.eval_shape(partial(computed_in, dtype=dtype), params)
    if all(jax.tree.leaves(jax.tree.map(lambda leaf, cast: leaf.dtype == cast.dtype, params, shapes))):
        return params
    return _cast_unet(params, dtype)


_cast_unet = jax.jit(computed_in, static_argnames="dtype")


@partial(jax.jit, static_argnames=("config", "dtype"))
def unet_ahead(params, t: Array, *, config: Config, dtype):
    """UNet parameters, t [R] -> parameters and shifts [R, C] for `unet_output`, with their share of the work done."""
    with precise(dtype):
        return computed_in(params, dtype), time_shifts(params, t, config.unet, dtype)


def unet_denoiser(
    params,
    sigmas: Array,
    cond: Cond,
    uncond: Cond,
    guide: Guide,
    extra: Array | None = None,
    known: Known | None = None,
    function: Callable | None = None,
    *,
    config: Config,
    dtype,
) -> Denoiser:
    """The UNet, wrapped in all that was asked for; to be called at `sigmas` [R] alone."""
    steps = timesteps_of(make_schedule(config.schedule), sigmas)
    params, shifts = unet_ahead(params, steps, config=config, dtype=dtype)

    def predict(x: Array, sigma: Array, cond: Cond) -> Array:
        row = jnp.argmin(jnp.abs(jnp.expand_dims(sigma, -1) - sigmas), axis=-1)
        rows = jnp.broadcast_to(row, x.shape[:1])
        return unet_output(params, x, jax.tree.map(itemgetter(rows), shifts), cond.context, config.unet, dtype)

    predict = predict if extra is None else with_channels(predict, extra)
    scale = in_interval(by_level(guide.levels, guide.scales), guide.low, guide.high)
    denoiser = to_denoiser(config.schedule, with_guidance(predict, uncond, cond, scale, guide.rescale))
    denoiser = denoiser if function is None else with_function(denoiser, function, guide.levels)
    return denoiser if known is None else with_known_region(denoiser, *known)


@partial(jax.jit, static_argnames=("height", "width", "pixels"))
def enlarge(image: Array, height: int, width: int, pixels: bool) -> Array:
    """One image's latents [h, w, C], bicubic, or pixels, LANCZOS, -> [height, width, C]."""
    large = jax.image.resize(image, (height, width, image.shape[-1]), "lanczos3" if pixels else "bicubic")
    return jnp.clip(large, -1.0, 1.0) if pixels else large


@partial(jax.jit, static_argnames=("function", "keep", "config", "dtype"))
def walk(
    params,
    cond: Cond,
    uncond: Cond,
    guide: Guide,
    draws: Draws,
    extra: Array | None,
    known: Known | None,
    rows: Row,
    state: State,
    *,
    config: Config,
    dtype,
    function: Callable | None = None,
    keep: bool = False,
):
    """`sampler.sample`: the state `rows` further on, with `keep` also its Trace."""
    denoiser = unet_denoiser(
        params, rows.sigma, cond, uncond, guide, extra, known, function, config=config, dtype=dtype
    )
    return sample(rows, denoiser, state, lambda row: fresh(draws, row, state.x.shape[1:]), keep=keep)


@partial(jax.jit, static_argnames=("config", "dtype"))
def finish(params, latents: Array, *, config: Config, dtype) -> Array:
    """Scaled latents -> pixels, clipped."""
    return jnp.clip(vae_pixels(params, latents, config.vae, dtype), -1.0, 1.0)
