"""The options of SDXL and of a refiner, checked against the models."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdjax.conditioning.sizes import PAIRS, check_pair, sizes_of, takes_score, takes_sizes
from sdjax.diffusion.guidance import timesteps_of
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError, in_short
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.options_sdxl import SDXL_OPTIONS
from sdjax.types import Cond


def takes_target(config: Config) -> bool:
    """Is the model told a target size, as SDXL is and its refiner is not?"""
    return takes_sizes(config) and not takes_score(config)


SIZES = {"original_size": takes_sizes, "crop": takes_sizes, "target_size": takes_target}
DEFAULTS = {option.name: option.default for option in SDXL_OPTIONS}


def is_given(name: str, value: Any) -> bool:
    """Is the value of an option another than its default? Arrays are."""
    return isinstance(value, (np.ndarray, jax.Array)) or value != DEFAULTS[name]


def check_sdxl(config: Config, prompts: Any, times: int, options: TaskOptions) -> list[str] | None:
    """Checks the options of SDXL_OPTIONS, and returns prompt_2 of each image, or None.

    prompts: of each image, or a Cond. times: how often each of the caller's prompts is drawn.
    SdjaxError: one is out of range, or not for this model and its refiner.
    """
    refiner = options.refiner
    if refiner is not None and not hasattr(refiner, "config"):
        raise SdjaxError(f"refiner {type(refiner).__name__}: a model, as sdjax.load gives it, expected")
    configs = [config] + ([] if refiner is None else [refiner.config])
    for name, test, who in (
        *((f"{side}{name}", test, "SDXL does") for side in ("", "negative_") for name, test in SIZES.items()),
        ("zero_negative", takes_sizes, "SDXL does"),
        ("aesthetic_score", takes_score, "SDXL's refiner does"),
        ("negative_aesthetic_score", takes_score, "SDXL's refiner does"),
        ("prompt_2", lambda config: config.text_2 is not None, "SDXL does"),
        ("negative_prompt_2", lambda config: config.text_2 is not None, "SDXL does"),
    ):
        if is_given(name, value := getattr(options, name)) and not any(map(test, configs)):
            raise SdjaxError(f"{name} {in_short(value)}: {config.name} takes none, {who}")
        if (pair := name.removeprefix("negative_")) in PAIRS and value is not None:
            check_pair(name, value, PAIRS[pair])
    if refiner is None:
        for name in ("refiner_start", "refiner_cond", "refiner_negative"):
            if is_given(name, getattr(options, name)):
                raise SdjaxError(f"{name}: needs a refiner")
    else:
        check_refiner(config, refiner.config)
    return second_prompts(prompts, times, options)


def second_prompts(prompts: Any, times: int, options: TaskOptions) -> list[str] | None:
    """Returns prompt_2 of each image, or None if it is the prompt."""
    second = options.prompt_2
    if options.negative_prompt_2 is not None:
        if not isinstance(options.negative_prompt_2, str):
            raise SdjaxError(f"negative_prompt_2 {in_short(options.negative_prompt_2)}: a string")
        if isinstance(options.negative_prompt, Cond):
            raise SdjaxError("negative_prompt_2: the negative prompt is a Cond, which holds both towers' states")
    if second is None:
        return None
    if isinstance(prompts, Cond):
        raise SdjaxError("prompt_2: the prompt is a Cond, which holds both towers' states")
    second = [second] if isinstance(second, str) else second
    asked = len(prompts) // times
    if not isinstance(second, Sequence) or not all(isinstance(one, str) for one in second):
        raise SdjaxError(f"prompt_2 {in_short(options.prompt_2)}: a string or a list of strings")
    if len(second) not in (1, asked):
        raise SdjaxError(f"prompt_2: {len(second)} for {asked} prompts, one or {asked} expected")
    return [one for one in second for _ in range(len(prompts) // len(second))]


def sizes_asked(config: Config, options: TaskOptions, shape: tuple[int, int, int], negative: bool) -> np.ndarray:
    """Returns the numbers that a model which takes sizes is told on one side of guidance, as `sizes_of` does.

    shape: of a picture's latents: a size of None is the picture's. A negative size of None is the positive one.
    """
    own, names = tuple(side * config.vae.factor for side in shape[:2]), [name for name in SIZES if SIZES[name](config)]
    pairs = {name: getattr(options, name) for name in names}
    if negative:
        pairs |= {name: found for name in names if (found := getattr(options, f"negative_{name}")) is not None}
    pairs = {name: own if pair is None else pair for name, pair in pairs.items()}
    score = options.negative_aesthetic_score if negative else options.aesthetic_score
    return sizes_of(config, **pairs, aesthetic_score=score if takes_score(config) else None)


def check_refiner(config: Config, refiner: Config) -> None:
    """SdjaxError: a model of config `refiner` cannot walk on with the latents of one of `config`."""
    if (refiner.vae.latent_channels, refiner.vae.scaling) != (config.vae.latent_channels, config.vae.scaling):
        raise SdjaxError(f"refiner {refiner.name}: its latents are not those of {config.name}")
    abar = [make_schedule(one.schedule).alphas_cumprod for one in (config, refiner)]
    if abar[0].shape != abar[1].shape or not np.allclose(*abar, rtol=1e-4, atol=1e-9):
        raise SdjaxError(f"refiner {refiner.name}: its noise schedule is not that of {config.name}")
    if (concat := family_of(refiner).concat) is not None and concat != family_of(config).concat:
        raise SdjaxError(f"refiner {refiner.name}: takes a {concat} as well, which {config.name} does not")
    if refiner.text is None:
        raise SdjaxError(f"refiner {refiner.name}: a model of text expected")


def turn_of(plan: Plan, config: Config, start: float) -> int:
    """Returns how many of a plan's rows the first model walks: those at t >= round(N - N start), for N timesteps.

    diffusers counts so with denoising_end, and AUTOMATIC1111 for each evaluation.
    """
    schedule = make_schedule(config.schedule)
    t = timesteps_of(schedule, plan.rows.sigma[np.asarray(plan.rows.live)].astype(np.float64), np)
    return int(np.sum(t >= round(schedule.timesteps * (1 - start))))
