"""What a walk starts from: a chunk's images as arrays -> both sides of guidance, the known part, the first state."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sdjax.conditioning.masks import hide, mask_channels
from sdjax.diffusion import noise
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.sampler import start
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.model.functions import context_keys
from sdjax.model.image_prompt import with_pictures
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.unet.network import guidance_features
from sdjax.tasks import stages
from sdjax.tasks.image_prompts import Looks, Own, keys_of_looks
from sdjax.tasks.request import Request
from sdjax.tasks.sides import encoded
from sdjax.tasks.steering import own_keys
from sdjax.text.prompt import Tokens
from sdjax.types import Array, Cond, Params


class Chunk(NamedTuple):
    """The inputs of some images, one entry for each; a field that the task does not use is None."""

    asked: tuple[Tokens | Cond, ...]  # of the model and, if there is one, of the refiner
    seeds: np.ndarray  # [B]
    noise: np.ndarray | None = None  # [B, h, w, C], replaces the noise that seeds draw first
    pictures: np.ndarray | None = None  # [B, H, W, 3], or latents [B, h, w, C]
    masks: np.ndarray | None = None  # [B, H, W, 1], zeros and ones
    cells: np.ndarray | None = None  # [B, h, w, 1], the same for latents
    beside: Cond | None = None  # what the task adds to both sides of guidance: concat, vector
    hints: tuple[np.ndarray, ...] | None = None  # the pictures of each control, [B, H, W, C] in [0, 1]
    looks: Looks | None = None  # the tokens of each image prompt
    guidance: np.ndarray | None = None  # [B], see Request
    others: np.ndarray | None = None  # [B], see Request
    hole: np.ndarray | None = None  # [B, 1, 1, 1], see `draw_request`


def prepare(
    params,
    chunk: Chunk,
    asked: Tokens | Cond,
    negative: Tokens | Cond,
    draws: noise.Draws,
    plan: Plan,
    shape: tuple[int, int, int],
    text: TextConfig,
    vectors: Array | None = None,
    *,
    config: Config,
    dtype,
    controls: Sequence[Params] = (),
    adapters: Sequence[Own] = (),
):
    """Returns what a walk starts from: (cond, uncond, known, state). Traceable for txt2img; see program.py.
    controls: the parameters of ControlNets and T2I-Adapters. adapters: of the chunk's image prompts."""
    count, sides = len(chunk.seeds), []
    for side, is_negative in ((asked, False), (negative, True)):
        side = encoded(params, side, text, dtype, vectors, count)
        context = context_keys(params["unet"], side.context, dtype)
        if adapters:
            context = with_pictures(context, config.unet, keys_of_looks(adapters, chunk.looks, is_negative, dtype))
        sides.append(side._replace(context=context | own_keys(controls, side.context, dtype)))
    cond, uncond = sides  # computed once for all steps
    eps = noise.draw(draws, shape, chunk.noise)
    x0, concat, known = condition(config, dtype, params, plan, chunk, eps)
    if concat is not None:
        cond, uncond = (side._replace(concat=concat) for side in (cond, uncond))
    uncond = stages.with_zero_vector(config, uncond, cond)
    if chunk.beside is not None:
        cond, uncond = (side | chunk.beside for side in (cond, uncond))
    if chunk.hole is not None:
        x0 = jnp.where(chunk.cells == 0, x0, chunk.hole * eps)
    return cond, uncond, known, start(plan, eps, x0 if x0 is not None and plan.signal else None)


def guide_of(config: Config, request: Request, plan: Plan) -> stages.Guide:
    """Returns the guidance of a request, with one scale for each step and then ones up to the plan's length."""
    scales = np.ones(len(plan.levels), np.float32)
    scales[: len(request.scales)] = request.scales
    low, high = request.options.guidance_interval or (0.0, math.inf)
    embedded = None
    if width := config.unet.guidance:
        inside = (low <= plan.levels) & (plan.levels <= high)
        embedded = guidance_features(np.where(inside, scales, 1.0), width)
    rescale = np.float32(request.options.guidance_rescale)
    return stages.Guide(plan.levels, scales, np.float32(low), np.float32(high), rescale, embedded)


def condition(config: Config, dtype, params, plan: Plan, chunk: Chunk, noise):
    """Returns (x0, concat, known), each None if it is not needed.

    x0: the pictures' latents. concat: the channels that an inpainting model takes beside x. known: what inpainting with
    any other model keeps of the pictures.
    """
    if chunk.pictures is None:
        return None, None, None
    encode = partial(stages.encode, params["vae"], config=config, dtype=dtype)
    concat = known = None
    family = family_of(config)
    inpainting = family.concat == "mask"
    x0 = chunk.pictures
    if x0.shape[3] == 3:
        x0 = encode(x0) if plan.signal or not inpainting else None
    if chunk.masks is not None:
        if inpainting:
            hidden = encode(hide(family.mask, chunk.pictures, chunk.masks))
            concat = mask_channels(family.mask, chunk.cells, hidden)
        else:
            known = stages.Known(x0, noise, chunk.cells, plan.rows.sigma[0])
    return x0, concat, known
