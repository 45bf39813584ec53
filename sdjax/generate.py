"""Text and pictures to pictures: prompts -> token ids -> context -> latents -> pixels, by the stages of stages.py.

With `progress` the plan is walked a row at a time and the state carried on, instead of calling back from inside the
scan: XLA programs that call Python cannot be kept in the persistent compilation cache, and one row's program serves any
number of steps.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import stages
from sdjax.config import Config
from sdjax.errors import SdjaxError
from sdjax.image import feather_masks, pixels_to_pil, read_images, read_masks
from sdjax.model import StableDiffusion, prompt_tower, read_prompts, text_context
from sdjax.options import Options, Request, check, check_size, number, takes_options
from sdjax.parallel import copy_over, split_over
from sdjax.prompt import Tokens, group
from sdjax.sampler import Plan, start
from sdjax.sampler import plan as make_plan
from sdjax.schedule import make_schedule
from sdjax.types import Cond

POSITIONS = 2**13  # latent positions that a device takes at once: 32 pictures of 16 x 16, 2 of 64 x 64


class Trajectory(NamedTuple):
    """A walk as it went, for output="trajectory"; n counts evaluations of the model."""

    sigma: np.ndarray  # [n]
    x: np.ndarray  # [n, B, h, w, 4]: what the model was called with (known region and channels aside)
    x0: np.ndarray  # [n, B, h, w, 4]: what it took x for, guided
    latents: np.ndarray  # [B, h, w, 4]: where it ended


class Chunk(NamedTuple):
    """What belongs to each image; None where a task has no such thing."""

    tokens: Tokens  # [B, P, K, length]
    seeds: np.ndarray  # [B]
    noise: np.ndarray | None = None  # [B, h, w, C] in place of the seeds' first draw
    pictures: np.ndarray | None = None  # [B, H, W, 3], or latents [B, h, w, C]
    masks: np.ndarray | None = None  # [B, H, W, 1], zeros and ones


@takes_options
def txt2img(sd: StableDiffusion, prompt: str | Sequence[str], options: Options):
    """`num_images` pictures of each prompt, prompt by prompt.

    output "pil" gives a list of PIL images, "pixels" float32 [B, height, width, 3] clipped to [-1, 1], "latents" scaled
    float32 [B, h, w, 4], "trajectory" a Trajectory. Image i draws from seed + i and from nothing else.
    """
    refuse_inpainting(sd.config)
    return run(sd, check(sd.config, prompt, options), plan_of(sd, options))


@takes_options
def img2img(sd: StableDiffusion, prompt: str | Sequence[str], image, strength: float = 0.75, options: Options = None):
    """Pictures like `image`: it gets the noise of a level on the way and is denoised from there. Results as txt2img's.

    image: a PIL image or a list of them, resized to height and width or to the next smaller fitting size; a float
    array [H, W, 3] or [B, H, W, 3] in [-1, 1] of a fitting size; or scaled latents [B, h, w, 4]. One for all prompts,
    or as many as prompts. Its latents are the posterior's mean.
    strength: (0, 1]; the last int(steps strength) steps are walked, from the level that the picture is noised to.
    latents: the unit noise that is added.
    """
    refuse_inpainting(sd.config)
    options, pictures = read(sd.config, image, options)
    request = check(sd.config, prompt, options, len(pictures))
    return run(sd, request, plan_of(sd, options, strength), pictures)


@takes_options
def inpaint(sd: StableDiffusion, prompt: str | Sequence[str], image, mask, strength: float = 1.0, feather: float = 0.0,
            options: Options = None):
    """`image` with its white part under `mask` painted anew; pixels under black are the input's. Results as txt2img's.

    An inpainting model (9 channels) sees the mask and the rest of the picture beside x; for any other what is known is
    put back, with noise, before each step. The model's mask takes one pixel in each latent's corner, as diffusers.
    image: as img2img's, but no latents. mask: PIL, or an array [H, W] or [B, H, W] (bool, 0 .. 1, uint8), of any size;
    half and more is white. One for all, or as many as images.
    strength: 1 fills the hole from noise; below 1 from what was there, as img2img. feather: pixels inside the mask's
    border over which old and new are blended.
    """
    config = sd.config
    known = (config.vae.latent_channels, 2 * config.vae.latent_channels + 1)
    if config.unet.in_channels not in known:
        raise SdjaxError(f"sd {config.name}: {config.unet.in_channels} channels, {known[0]} or {known[1]} expected")
    if not number(feather, 0):
        raise SdjaxError(f"feather {feather!r}: a number of pixels from 0 on")
    options, pictures = read(config, image, options)
    if pictures.shape[3] != 3:
        raise SdjaxError("image: pixels [B, H, W, 3] expected, inpaint does not take latents")
    masks = read_masks(mask, pictures.shape[1:3])
    count = max(len(pictures), len(masks))
    if len(masks) not in (1, count) or len(pictures) not in (1, count):
        raise SdjaxError(f"mask: {len(masks)} masks for {len(pictures)} images, one or {len(pictures)} expected")
    request = check(config, prompt, options, count)
    full = number(strength) and strength == 1  # then x is all noise, what is known included, as in diffusers
    plan = plan_of(sd, options, None if full else strength)
    return run(sd, request, plan, pictures, masks, feather)


def plan_of(sd: StableDiffusion, options: Options, strength: float | None = None) -> Plan:
    return make_plan(options.sampler, make_schedule(sd.config.schedule), options.steps, options.eta, options.sigmas,
                     options.spacing, strength)


def refuse_inpainting(config: Config) -> None:
    if config.unet.in_channels != config.vae.latent_channels:
        raise SdjaxError(f"sd {config.name}: an inpainting model ({config.unet.in_channels} channels), use inpaint")


def read(config: Config, image, options: Options) -> tuple[Options, np.ndarray]:
    """The pictures [Q, H, W, 3] (or latents [Q, h, w, C]), and options with their size."""
    factor, channels = config.vae.factor, config.vae.latent_channels
    check_size(config, options)
    pictures = read_images(image, options.height, options.width, factor * config.unet.factor, channels)
    height, width = (side * (1 if pictures.shape[3] == 3 else factor) for side in pictures.shape[1:3])
    return replace(options, height=height, width=width), pictures


def run(sd: StableDiffusion, request: Request, plan: Plan, pictures=None, masks=None, feather: float = 0.0):
    """All images of a request: those whose prompts have one shape together, in chunks that the devices hold."""
    options, count, output = request.options, request.count, request.options.output
    each = partial(for_each, count=count)
    tower, (negative,) = prompt_tower(sd, options.clip_skip), read_prompts(sd, request.negative, options.syntax, False)
    known = [*dict.fromkeys(request.prompts)]
    known = dict(zip(known, read_prompts(sd, known, options.syntax), strict=True))
    whole = Chunk(None, request.seeds, options.latents, each(pictures), each(masks))
    whole = jax.tree.map(np.asarray, whole)

    work = []  # a chunk each: (places of its images, their number, tokens, the negative prompt's, devices)
    for places, tokens, null in group([known[prompt] for prompt in request.prompts], negative, tower[0]):
        size, devices = chunk_size(len(places), request.shape[0] * request.shape[1])
        for first in range(0, len(places), size):
            chosen = np.minimum(np.arange(first, first + size), len(places) - 1)  # the last is filled up, then cut
            part = jax.tree.map(itemgetter(chosen), tokens)
            work.append((places[chosen], min(size, len(places) - first), part, null, devices))
    rows, results = int(np.sum(plan.rows.live)), [None] * count
    for n, (places, length, tokens, null, devices) in enumerate(work):
        chunk = jax.tree.map(lambda leaf, places=places: leaf[places], whole)._replace(tokens=tokens)
        report = options.progress and (lambda row, n=n: options.progress(n * rows + row, len(work) * rows))
        images = generate(sd.config, sd.dtype, copy_over(sd.params, devices), request, plan, split_over(chunk, devices),
                          null, tower, report)
        for i, place in enumerate(places[:length]):
            results[place] = jax.tree.map(itemgetter(i), images)
    result = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
    if output == "trajectory":
        turn = partial(np.moveaxis, source=1, destination=0)
        return Trajectory(plan.rows.sigma[:rows], turn(result.x), turn(result.x0), result.latents)
    if masks is not None and output != "latents":
        weight = each(feather_masks(masks, feather))
        result = np.where(weight == 0, whole.pictures, weight * result + (1 - weight) * whole.pictures)
    return pixels_to_pil(result) if output == "pil" else result


def for_each(values: np.ndarray | None, count: int) -> np.ndarray | None:
    """What was given once, or once a picture, for `count` images."""
    if values is None or len(values) == count:
        return values
    if len(values) == 1:
        return np.broadcast_to(values, (count, *values.shape[1:]))
    return values.repeat(count // len(values), axis=0)


def generate(config: Config, dtype, params, request: Request, plan: Plan, chunk: Chunk, null: Tokens, tower, report):
    """One chunk through the stages, as host arrays, the image first."""
    static, options = {"config": config, "dtype": dtype}, request.options
    cond, uncond = (text_context(params["text"], side, tower[0], dtype, tower[1]) for side in (chunk.tokens, null))
    uncond = Cond(jnp.broadcast_to(uncond.context, (len(chunk.seeds), *uncond.context.shape[1:])))
    draws = stages.image_draws(chunk.seeds, np.uint32(options.variation_seed), np.float32(options.variation_strength))
    noise = stages.draw(draws, request.shape, chunk.noise)
    x0, extra, known = condition(config, dtype, params, plan, chunk, noise)
    state = start(plan, noise, x0 if plan.signal else None)
    walk = partial(stages.walk, params["unet"], cond, uncond, guide_of(request, plan), draws, extra, known,
                   function=options.guidance_fn, **static)
    trajectory, count = options.output == "trajectory", int(np.sum(plan.rows.live))
    traces = []
    if report is None:
        state = walk(plan.rows, state, keep=trajectory)
        if trajectory:
            state, trace = state
            traces = [jax.tree.map(lambda leaf: np.asarray(leaf)[:count], trace)]
    else:
        for n in range(count):
            state, trace = walk(jax.tree.map(itemgetter(slice(n, n + 1)), plan.rows), state, keep=True)
            if trajectory:
                traces.append(jax.tree.map(np.asarray, trace))
            jax.block_until_ready(state.x)
            report(n + 1)
    x = state.x if known is None else jnp.where(known.mask == 0, known.x0, state.x)
    if trajectory:
        x_, x0_ = (np.moveaxis(np.concatenate(leaves), 1, 0) for leaves in zip(*traces, strict=True))
        return Trajectory(None, x_, x0_, np.asarray(x))
    return np.asarray(x if options.output == "latents" else stages.finish(params["vae"], x, **static))


def guide_of(request: Request, plan: Plan) -> stages.Guide:
    scales = np.ones(len(plan.levels), np.float32)
    scales[: len(request.scales)] = request.scales
    low, high = request.options.guidance_interval or (0.0, math.inf)
    return stages.Guide(plan.levels, scales, np.float32(low), np.float32(high),
                        np.float32(request.options.guidance_rescale))


def condition(config: Config, dtype, params, plan: Plan, chunk: Chunk, noise):
    """-> (x0 of the pictures, channels that an inpainting model wants, what another is to keep), or None each."""
    if chunk.pictures is None:
        return None, None, None
    encode = partial(stages.encode, params["vae"], config=config, dtype=dtype)
    extra = known = None
    inpainting = config.unet.in_channels != config.vae.latent_channels
    x0 = chunk.pictures
    if x0.shape[3] == 3:
        x0 = encode(x0) if plan.signal or not inpainting else None
    if chunk.masks is not None:
        small = chunk.masks[:, :: config.vae.factor, :: config.vae.factor]
        if inpainting:
            extra = jnp.concatenate([small, encode(chunk.pictures * (1 - chunk.masks))], -1)  # the hole is 0: grey
        else:
            known = stages.Known(x0, noise, small, plan.rows.sigma[0])
    return x0, extra, known


def chunk_size(count: int, positions: int) -> tuple[int, list]:
    """How many pictures go through at once, and the devices that share them evenly."""
    devices = jax.local_devices()[:count]
    most = max(1, POSITIONS // positions) * len(devices)
    size = math.ceil(count / math.ceil(count / most))
    return math.ceil(size / len(devices)) * len(devices), devices
