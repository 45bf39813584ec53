"""Text to pictures: prompts -> token ids -> context -> latents -> pixels.

Three stages, jitted, static in shapes, config and dtype alone: `text_context` (text tower), `_walk` (the sampler's
scan), `_finish` (VAE decoder). Guidance, eta, seeds, steps and the sampler itself are traced. With `progress` the plan
is walked a row at a time and the state carried on, instead of calling back from inside the scan: XLA programs that
call Python cannot be kept in the persistent compilation cache, and one row's program serves any number of steps.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import Config
from sdjax.denoise import make_denoiser, with_guidance
from sdjax.errors import SdjaxError
from sdjax.image import pixels_to_pil
from sdjax.model import (
    StableDiffusion,
    initial_noise,
    prompt_tower,
    read_prompts,
    text_context,
    unet_output,
    vae_pixels,
)
from sdjax.parallel import copy_over, split_over
from sdjax.prompt import group
from sdjax.sampler import Plan, Row, State, sample, start
from sdjax.sampler import plan as make_plan
from sdjax.schedule import make_schedule
from sdjax.types import Array, Cond

OUTPUTS = ("pil", "pixels", "latents")
POSITIONS = 2**13  # latent positions that a device takes at once: 32 pictures of 16 x 16, 2 of 64 x 64


def txt2img(sd: StableDiffusion, prompt: str | Sequence[str], negative_prompt: str = "", steps: int = 50,
            sampler: str = "ddim", guidance_scale: float = 7.5, eta: float | None = None, seed: int = 0,
            num_images: int = 1, height: int | None = None, width: int | None = None, latents=None, output: str = "pil",
            progress: Callable[[int, int], None] | None = None, sigmas: str = "default", spacing: str | None = None,
            clip_skip: int = 1, syntax: str = "a1111"):
    """`num_images` pictures of each prompt, prompt by prompt. Image i draws from seed + i and from nothing else.

    sampler: a name in `sdjax.samplers`. steps: 1 .. 1000. guidance_scale: 1 is the conditional model alone.
    eta: share of fresh noise, 0 .. 1, where the sampler takes it; None is the sampler's own, 0 for ddim.
    sigmas: "default" or "karras"; spacing: of the timesteps, see `sdjax.sampler.plan`.
    clip_skip, syntax: see `sdjax.encode_prompt`; in the negative prompt AND is text.
    height, width: pixels, the model's own size when None.
    latents: unit noise [B, h, w, 4] in place of the seeds' first draw.
    output: "pil", a list of PIL images; "pixels", float32 [B, height, width, 3] clipped to [-1, 1]; "latents",
    scaled float32 [B, h, w, 4]. progress(step, total) is called after each evaluation of the model.
    SdjaxError, naming the argument, for what is out of range.
    """
    prompts, negative, shape = _check(sd, prompt, negative_prompt, guidance_scale, seed, num_images, height, width,
                                      latents, output)
    plan = make_plan(sampler, make_schedule(sd.config.schedule), steps, eta, sigmas, spacing)
    tower, (null,) = prompt_tower(sd, clip_skip), read_prompts(sd, negative, syntax, composed=False)
    read = [prompt for prompt in read_prompts(sd, prompts, syntax) for _ in range(num_images)]
    groups = group(read, null, tower[0])
    sizes = [chunk_size(len(images), shape[0] * shape[1]) for images, _, _ in groups]
    seeds = np.arange(seed, seed + len(read), dtype=np.uint32)

    results, done, rows = [None] * len(read), 0, int(np.sum(plan.rows.live))
    total = rows * sum(-(-len(images) // size) for (images, _, _), (size, _) in zip(groups, sizes, strict=True))
    for (images, tokens, null), (size, devices) in zip(groups, sizes, strict=True):
        params = copy_over(sd.params, devices)
        for first in range(0, len(images), size):
            chosen = np.minimum(np.arange(first, first + size), len(images) - 1)  # the last chunk is filled up
            places = images[chosen]
            batch = (jax.tree.map(itemgetter(chosen), tokens), seeds[places],
                     latents[places] if latents is not None else None)
            report = progress and (lambda n, done=done: progress(done + n, total))
            out = _generate(sd.config, sd.dtype, params, plan, split_over(batch, devices), null, tower, shape,
                            guidance_scale, output, report)
            done += rows
            for place, image in zip(places, np.asarray(out), strict=True):
                results[place] = image
    result = np.stack(results)
    return pixels_to_pil(result) if output == "pil" else result


def _generate(config: Config, dtype, params, plan: Plan, batch, null, tower, shape, guidance_scale: float, output: str,
              report: Callable[[int], None] | None) -> Array:
    """One chunk through the three stages."""
    tokens, seeds, noise = batch
    static = {"config": config, "dtype": dtype}
    cond, uncond = (text_context(params["text"], side, tower[0], dtype, tower[1]) for side in (tokens, null))
    uncond = Cond(jnp.broadcast_to(uncond.context, (len(seeds), *uncond.context.shape[1:])))
    noise = initial_noise(seeds, shape) if noise is None else noise
    state = start(plan, noise)
    walk = partial(_walk, params["unet"], cond, uncond, seeds, jnp.float32(guidance_scale), **static)
    if report is None:
        state = walk(plan.rows, state)
    else:
        for n in range(int(np.sum(plan.rows.live))):
            state = walk(jax.tree.map(itemgetter(slice(n, n + 1)), plan.rows), state)
            jax.block_until_ready(state.x)
            report(n + 1)
    return state.x if output == "latents" else _finish(params["vae"], state.x, **static)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _walk(params, cond: Cond, uncond: Cond, seeds: Array, scale: Array, rows: Row, state: State, *,
          config: Config, dtype) -> State:
    """The state `rows` further on."""
    predict = lambda x, t, cond: unet_output(params, x, t, cond.context, config.unet, dtype)
    denoiser = make_denoiser(config.schedule, with_guidance(predict, uncond, cond, scale))
    noise = lambda row: jax.vmap(lambda seed: _normal(seed, row, state.x.shape[1:]))(seeds)
    return sample(rows, denoiser, state, noise)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _finish(params, latents: Array, *, config: Config, dtype) -> Array:
    """Scaled latents -> pixels, clipped."""
    return jnp.clip(vae_pixels(params, latents, config.vae, dtype), -1.0, 1.0)


def _normal(seed: Array, row: Array, shape: tuple[int, ...]) -> Array:
    """Fresh noise of one image at one row of the plan."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), row), shape)


def chunk_size(count: int, positions: int) -> tuple[int, list]:
    """How many pictures go through at once, and the devices that share them evenly."""
    devices = jax.local_devices()[:count]
    most = max(1, POSITIONS // positions) * len(devices)
    size = math.ceil(count / math.ceil(count / most))
    return math.ceil(size / len(devices)) * len(devices), devices


def _check(sd, prompt, negative_prompt, guidance_scale, seed, num_images, height, width, latents, output):
    """Refuses what txt2img cannot do; -> (prompts, negative prompt, latent shape (h, w, C))."""
    whole = lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    config = sd.config
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise SdjaxError(f"prompt {prompt!r}: a string or a list of at least one string")
    if not isinstance(negative_prompt, str):
        raise SdjaxError(f"negative_prompt {negative_prompt!r}: a string")
    if not isinstance(guidance_scale, (int, float, np.number)) or not math.isfinite(guidance_scale):
        raise SdjaxError(f"guidance_scale {guidance_scale!r}: a finite number")
    if not whole(num_images) or num_images < 1:
        raise SdjaxError(f"num_images {num_images!r}: a whole number from 1 on")
    count = len(prompts) * num_images
    if not whole(seed) or not 0 <= seed <= 2**32 - count:
        raise SdjaxError(f"seed {seed!r}: a whole number from 0 to {2**32 - count} for {count} images")
    if output not in OUTPUTS:
        raise SdjaxError(f"output {output!r}: one of {', '.join(OUTPUTS)}")
    multiple = config.vae.factor * config.unet.factor
    sides = []
    for name, side in (("height", height), ("width", width)):
        side = config.size if side is None else side
        if not whole(side) or side < multiple or side % multiple:
            raise SdjaxError(f"{name} {side!r}: a positive multiple of {multiple} pixels for {config.name}")
        sides.append(side // config.vae.factor)
    if config.unet.in_channels != config.vae.latent_channels:
        raise SdjaxError(f"sd {config.name}: an inpainting model ({config.unet.in_channels} channels), use inpaint")
    shape = (*sides, config.vae.latent_channels)
    if latents is not None and np.shape(latents) != (count, *shape):
        raise SdjaxError(f"latents of shape {np.shape(latents)}: {(count, *shape)} for {count} images of this size")
    return prompts, negative_prompt, shape
