"""The request of one call of a task: its options, checked against the model and turned into arrays."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.errors import SdjaxError, in_short
from sdjax.families.config import Config
from sdjax.families.table import prompt_of
from sdjax.model.image_prompt import check_image_prompts
from sdjax.tasks.given import check_cond, repeated, stands_beside
from sdjax.tasks.networks import Networks, cut_networks
from sdjax.tasks.options import OPTIONS, TaskOptions
from sdjax.tasks.request_control import check_control
from sdjax.tasks.request_sdxl import check_sdxl
from sdjax.types import Cond


class Request(NamedTuple):
    """The options of one call for B images, checked and turned into arrays."""

    prompts: list[str] | Cond  # one for each image
    negative: str | list[str] | Cond  # for all of them, or one for each, which a Cond may hold as well
    seeds: np.ndarray  # uint32 [B]
    shape: tuple[int, int, int]  # (h, w, C) of one image's latents
    scales: np.ndarray  # float32 [steps]
    options: TaskOptions
    prompts_2: list[str] | None = None  # of the second text tower, one for each image; None: the same
    networks: list[Networks] | None = None  # the LoRAs that each image's prompt names; None: no model is merged anew
    guidance: np.ndarray | None = None  # float32 [B]: each image's guidance scale in all steps, in place of `scales`
    others: np.ndarray | None = None  # uint32 [B]: each image's variation seed, in place of that of the options

    @property
    def count(self) -> int:
        return len(self.seeds)


def check(
    config: Config, prompt: str | Sequence[str] | Cond | None, options: TaskOptions, pictures: int = 1
) -> Request:
    """Returns the checked Request of one call of a task.

    prompt: one, or a list, or a Cond of one or several; each is drawn options.num_images times. None for a model that
        is conditioned on nothing.
    pictures: how many pictures the task starts from: one, or one for each prompt.
    SdjaxError: an argument that no task can use; the message names it.
    """
    if prompt is None and config.text is None and not config.unet.cross:
        prompt = Cond()
    if isinstance(prompt, Cond):
        prompts, asked = prompt, check_cond(config, "prompt", prompt)
    elif prompt is None and config.text is None:
        raise SdjaxError(f"prompt None: {config.name} takes {prompt_of(config)}")
    else:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise SdjaxError(f"prompt {in_short(prompt)}: a string or a list of at least one string, or a Cond")
        asked = len(prompts)
    if pictures != 1 and asked not in (1, pictures):
        raise SdjaxError(f"prompt: {asked} prompts for {pictures} images, one or {pictures} expected")
    for option in OPTIONS:
        if option.check is not None and not option.check(value := getattr(options, option.name)):
            raise SdjaxError(f"{option.name} {value!r}: {option.right}")
    times = options.num_images * (pictures if asked == 1 else 1)
    networks = None
    if not isinstance(prompts, Cond):
        prompts, networks = cut_networks(prompts, options)
        networks = [found for found in networks for _ in range(times)] if any(networks) else None
    prompts = repeated(prompts, times) if isinstance(prompts, Cond) else [p for p in prompts for _ in range(times)]
    count, negative = asked * times, options.negative_prompt
    prompts_2 = check_sdxl(config, prompts, times, options)
    if isinstance(negative, Sequence) and not isinstance(negative, (str, Cond)):
        negative = check_negatives(negative, asked, times)
    if not isinstance(negative, (str, list, Cond)):
        raise SdjaxError(f"negative_prompt {in_short(negative)}: a string, a list of one for each prompt, or a Cond")
    if isinstance(negative, Cond):
        if negative.mix is not None:
            raise SdjaxError("negative_prompt.mix: a negative prompt is one, AND composes prompts")
        batch = check_cond(config, "negative_prompt", negative, (1, asked, count))
        negative = repeated(negative, count // batch if batch > 1 else 1)
    if not is_whole(options.seed, 0, 2**32 - count):
        raise SdjaxError(f"seed {options.seed!r}: a whole number from 0 to {2**32 - count} for {count} images")
    if options.guidance_fn is not None and type(options.guidance_fn).__hash__ is None:
        raise SdjaxError(f"guidance_fn {options.guidance_fn!r}: not hashable, a plain function expected")
    options = sized_by(config, prompts, options)
    height, width = check_size(config, options)
    check_control(config, options, count, (height, width))
    check_image_prompts(config, options.image_prompt, options.image_prompt_scale, count)
    factor = config.vae.factor
    shape = (height // factor, width // factor, config.vae.latent_channels)
    if options.latents is not None:
        latents = np.asarray(options.latents)
        if latents.shape != (count, *shape):
            raise SdjaxError(f"latents of shape {latents.shape}: {(count, *shape)} for {count} images of this size")
        if latents.dtype.kind not in "fiuV":  # V is bfloat16
            raise SdjaxError(f"latents are {latents.dtype}: numbers expected")
        if not np.isfinite(latents.astype(np.float32)).all():
            raise SdjaxError("latents have NaN or infinite values: unit noise expected")
    seeds = np.arange(options.seed, options.seed + count, dtype=np.uint32)
    networks = [()] * count if networks is None and options.lora_scale != 1 else networks
    return Request(prompts, negative, seeds, shape, guidance_scales(config, options), options, prompts_2, networks)


def some_images(request: Request, places: np.ndarray) -> Request:
    """Returns the request of some of its images, without the LoRAs that their prompts name."""
    chosen = lambda side: None if side is None else [side[place] for place in places]
    rows = lambda side: jax.tree.map(lambda leaf: leaf[places] if len(leaf) == request.count else leaf, side)
    return request._replace(
        prompts=rows(request.prompts) if isinstance(request.prompts, Cond) else chosen(request.prompts),
        negative=rows(request.negative) if isinstance(request.negative, Cond) else request.negative,
        seeds=request.seeds[places],
        guidance=None if request.guidance is None else request.guidance[places],
        others=None if request.others is None else request.others[places],
        prompts_2=chosen(request.prompts_2),
        networks=None,
    )


def check_negatives(negative: Sequence[str], asked: int, times: int) -> str | list[str]:
    """Returns the negative prompt of each image, or the one for all. SdjaxError: not one for each prompt."""
    if len(negative) not in (1, asked) or not all(isinstance(one, str) for one in negative):
        raise SdjaxError(f"negative_prompt of {len(negative)}: a string for each of {asked} prompts, or one for all")
    return negative[0] if len(set(negative)) == 1 else [one for one in negative for _ in range(times)]


def refiner_request(request: Request) -> Request | None:
    """Returns what the refiner of a request is asked for, or None without a refiner.

    It reads the prompts, and prompt_2 if it has a second text tower itself.
    SdjaxError: a Cond for it is missing, or is not what it takes.
    """
    options, count = request.options, request.count
    if options.refiner is None:
        return None
    config, found = options.refiner.config, {}
    for field, argument in (("prompts", "refiner_cond"), ("negative", "refiner_negative")):
        own, given = getattr(request, field), getattr(options, argument)
        if given is None and isinstance(own, Cond):
            raise SdjaxError(f"{argument} None: what {config.name} gets where the first model gets a Cond expected")
        if given is not None and not isinstance(given, Cond):
            raise SdjaxError(f"{argument} is {type(given).__name__}: a Cond expected")
        if given is not None:
            batch = check_cond(config, argument, given, (1, count // options.num_images, count))
            given = repeated(given, count // batch if batch > 1 or field == "prompts" else 1)
        found[field] = own if given is None else given
    second = request.prompts_2 if config.text_2 else None
    return request._replace(**found, prompts_2=second)


def sized_by(config: Config, prompt: list[str] | Cond, options: TaskOptions) -> TaskOptions:
    """Returns the options with the height and width of what a Cond brings to stand beside x, if it brings any."""
    if not stands_beside(prompt):
        return options
    sides = {
        name: side * config.vae.factor for name, side in zip(("height", "width"), prompt.concat.shape[1:3], strict=True)
    }
    for name, side in sides.items():
        if getattr(options, name) not in (None, side):
            raise SdjaxError(f"{name} {getattr(options, name)}: the channels of prompt.concat are of {side} pixels")
    return replace(options, **sides)


def check_size(config: Config, options: TaskOptions) -> tuple[int, int]:
    """Returns (height, width) in pixels, the model's own size for None. SdjaxError: no multiple of config.unit."""
    for name, side in (("height", options.height), ("width", options.width)):
        config.check_side(name, side)
    return tuple(config.size if side is None else int(side) for side in (options.height, options.width))


def guidance_scales(config: Config, options: TaskOptions) -> np.ndarray:
    """Returns guidance_scale as float32 [steps], one finite number for each step; None means the model's own scale.

    SdjaxError: a wrong guidance_scale, and also wrong steps or a wrong guidance_interval, which are checked here.
    """
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
