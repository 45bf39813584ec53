"""What every image task takes besides its own arguments: one dataclass, its checks, and the signatures made of it."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, NamedTuple

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.errors import SdjaxError
from sdjax.families.config import Config

OUTPUTS = ("pil", "pixels", "latents", "trajectory")

MOST_IMAGES = 2**20  # of a prompt in one call: their prompts and seeds are listed before the first is drawn


@dataclass(frozen=True)
class Options:
    """The keyword arguments that txt2img, img2img, inpaint, outpaint and hires share.

    negative_prompt: what to keep away from; AND is text in it.
    steps: 1 .. 1000. sampler: a name in `sdjax.samplers`.
    guidance_scale: a number; [steps] of them; a function of the step, from 0 on; or None, the model's own. 1 is the
        conditional model alone.
    eta: share of fresh noise, 0 .. 1, where the sampler takes it; None is the sampler's own, 0 for ddim.
    seed: image i has seed + i and depends on nothing else, but for rounding. num_images: of each prompt.
    height, width: pixels; None is the image's, or the model's own size.
    latents: unit noise [B, h, w, 4] in place of the seeds' first draw.
    output: "pil", a list of images; "pixels", float32 [B, height, width, 3] clipped to [-1, 1]; "latents", scaled
        [B, h, w, 4]; "trajectory", a `sdjax.tasks.engine.Trajectory`: x and x0 of every evaluation of the model.
    progress: called with (step, total) after each evaluation.
    sigmas: "default" or "karras". spacing: of the timesteps, "leading", "trailing" or "linspace"; None is the sampler's
        own. See `sdjax.diffusion.sampler.plan`.
    clip_skip, syntax: see `sdjax.encode_prompt`.
    preview: called with (step, image numbers, their x0 as PIL images) every `preview_every` evaluations.
    guidance_rescale: 0 .. 1, against overexposure at a large scale: arXiv 2305.08891, section 3.4.
    guidance_interval: (low, high), sigmas between which there is guidance: arXiv 2404.07724.
    guidance_fn: (x, x0, step) -> x0, traced, after guidance_scale; may use jax.grad.
    variation_seed, variation_strength: the noise is turned from seed + i's (0) towards variation_seed's (1). For many
        variations of seed 7's picture take variation_seed=7 and a strength near 1.

    Compiled for anew are: height, width, how many pictures go through at once and how many chunks their prompts have,
    clip_skip, guidance_fn, the output "trajectory", progress or preview (both alike), and now and then steps (see
    `sdjax.diffusion.sampler.plan`).
    """

    negative_prompt: str = ""
    steps: int = 50
    sampler: str = "ddim"
    guidance_scale: float | Sequence[float] | Callable[[int], float] | None = 7.5
    eta: float | None = None
    seed: int = 0
    num_images: int = 1
    height: int | None = None
    width: int | None = None
    latents: Any = None
    output: str = "pil"
    progress: Callable[[int, int], None] | None = None
    sigmas: str = "default"
    spacing: str | None = None
    clip_skip: int = 1
    syntax: str = "a1111"
    preview: Callable[[int, list[int], list], None] | None = None
    preview_every: int = 10
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    guidance_fn: Callable | None = None
    variation_seed: int = 0
    variation_strength: float = 0.0


class Request(NamedTuple):
    """Options of one call, checked and in arrays' form."""

    prompts: list[str]  # one an image
    negative: str
    seeds: np.ndarray  # uint32 [B]
    shape: tuple[int, int, int]  # of one image's latents
    scales: np.ndarray  # float32 [steps]
    options: Options

    @property
    def count(self) -> int:
        return len(self.prompts)


def takes_options(task: Callable) -> Callable:
    """Gives task(..., options: Options) the fields of Options as keyword arguments, in its signature and docstring too.

    What does not bind is refused as everything else is, by SdjaxError.
    """
    own = [p for p in inspect.signature(task).parameters.values() if p.name != "options"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shared = [inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields(Options)]
    signature = inspect.Signature([*own, *shared])

    @wraps(task)
    def call(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise SdjaxError(f"{task.__name__}: {error}; it takes {', '.join(signature.parameters)}") from None
        mine = {p.name: bound.arguments.pop(p.name) for p in own if p.name in bound.arguments}
        if not hasattr(mine.get("sd"), "config"):
            raise SdjaxError(f"sd is {type(mine.get('sd')).__name__}: a model, as sdjax.load gives it, expected")
        return task(**mine, options=Options(**bound.arguments))

    call.__signature__ = signature
    listed = inspect.cleandoc(Options.__doc__).partition("\n\n")[2]
    call.__doc__ = f"{inspect.cleandoc(task.__doc__)}\n\n{listed}\nWhat is out of range is refused by name: SdjaxError."
    return call


def check(config: Config, prompt: str | Sequence[str], options: Options, pictures: int = 1) -> Request:
    """Refuses what no task can do. `pictures` is how many pictures a task starts from: one, or one a prompt."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise SdjaxError(f"prompt {prompt!r}: a string or a list of at least one string")
    if pictures != 1 and len(prompts) not in (1, pictures):
        raise SdjaxError(f"prompt: {len(prompts)} prompts for {pictures} images, one or {pictures} expected")
    if not isinstance(options.negative_prompt, str):
        raise SdjaxError(f"negative_prompt {options.negative_prompt!r}: a string")
    if not is_whole(options.num_images, 1, MOST_IMAGES):
        raise SdjaxError(f"num_images {options.num_images!r}: a whole number from 1 to {MOST_IMAGES}")
    prompts = prompts * (pictures if len(prompts) == 1 else 1)
    prompts = [p for p in prompts for _ in range(options.num_images)]
    count = len(prompts)
    if not is_whole(options.seed, 0, 2**32 - count):
        raise SdjaxError(f"seed {options.seed!r}: a whole number from 0 to {2**32 - count} for {count} images")
    if not is_whole(options.variation_seed, 0, 2**32 - 1):
        raise SdjaxError(f"variation_seed {options.variation_seed!r}: a whole number from 0 to {2**32 - 1}")
    for name in ("variation_strength", "guidance_rescale"):
        if not is_number(getattr(options, name), 0, 1):
            raise SdjaxError(f"{name} {getattr(options, name)!r}: a number from 0 to 1")
    if options.output not in OUTPUTS:
        raise SdjaxError(f"output {options.output!r}: one of {', '.join(OUTPUTS)}")
    if not is_whole(options.preview_every, 1):
        raise SdjaxError(f"preview_every {options.preview_every!r}: a whole number of steps from 1 on")
    for name in ("progress", "preview", "guidance_fn"):
        if getattr(options, name) is not None and not callable(getattr(options, name)):
            raise SdjaxError(f"{name} {getattr(options, name)!r}: a function or None")
    if options.guidance_fn is not None and type(options.guidance_fn).__hash__ is None:
        raise SdjaxError(f"guidance_fn {options.guidance_fn!r}: not hashable, a plain function expected")
    height, width = check_size(config, options)
    factor = config.vae.factor
    shape = (height // factor, width // factor, config.vae.latent_channels)
    if options.latents is not None:
        latents = np.asarray(options.latents)
        if latents.shape != (count, *shape):
            raise SdjaxError(f"latents of shape {latents.shape}: {(count, *shape)} for {count} images of this size")
        if latents.dtype.kind not in "fiuV":  # V is bfloat16
            raise SdjaxError(f"latents are {latents.dtype}: numbers expected")
    seeds = np.arange(options.seed, options.seed + count, dtype=np.uint32)
    return Request(prompts, options.negative_prompt, seeds, shape, guidance_scales(config, options), options)


def check_size(config: Config, options: Options) -> tuple[int, int]:
    """(height, width) in pixels."""
    multiple = config.multiple
    for name, side in (("height", options.height), ("width", options.width)):
        if side is not None and (not is_whole(side, multiple) or side % multiple):
            raise SdjaxError(f"{name} {side!r}: a positive multiple of {multiple} pixels for {config.name}")
    return tuple(config.size if side is None else int(side) for side in (options.height, options.width))


def guidance_scales(config: Config, options: Options) -> np.ndarray:
    """guidance_scale as one finite number a step."""
    scale, steps, interval = options.guidance_scale, options.steps, options.guidance_interval
    if interval is not None and not (
        isinstance(interval, Sequence)
        and len(interval) == 2
        and all(is_number(s, 0) for s in interval)
        and interval[0] <= interval[1]
    ):
        raise SdjaxError(f"guidance_interval {interval!r}: two sigmas (low, high), 0 <= low <= high, or None")
    if not is_whole(steps, 1, config.schedule.timesteps):
        raise SdjaxError(f"steps {steps!r}: a whole number from 1 to {config.schedule.timesteps}")
    if scale is None:
        scale = config.guidance_scale
    if callable(scale):
        values = [scale(n) for n in range(steps)]
    elif (isinstance(scale, Sequence) and not isinstance(scale, str)) or np.ndim(scale) == 1:
        values = list(scale)
    else:
        values = [scale] * steps
    values = [value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value for value in values]
    if len(values) != steps:
        raise SdjaxError(f"guidance_scale of {len(values)} numbers: one, or one for each of {steps} steps")
    for value in values:
        if not is_number(value):
            raise SdjaxError(
                f"guidance_scale {value!r}: a finite number, [steps] of them, a function of the step or None"
            )
    return np.asarray(values, np.float32)
