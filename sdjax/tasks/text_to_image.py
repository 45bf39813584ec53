"""The tasks that start from text alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.errors import SdjaxError
from sdjax.families.table import needs_nothing_beside
from sdjax.model.value import StableDiffusion
from sdjax.tasks import stages
from sdjax.tasks.engine import draw_request, evaluations
from sdjax.tasks.given import check_beside
from sdjax.tasks.options import TaskOptions, takes_options
from sdjax.tasks.plans import given, plan_of
from sdjax.tasks.request import Request, check, guidance_scales
from sdjax.tasks.sides import read_sides
from sdjax.tasks.work import plan_work
from sdjax.types import Array, Cond

UPSCALE = ("latents", "pixels")

HIRES = 2**32 - 1  # the `stream` of the second walk's noise


@takes_options
def txt2img(sd: StableDiffusion, prompt: str | Sequence[str] | Cond | None, options: TaskOptions):
    """Draws `num_images` pictures of each prompt and returns them, prompt by prompt, in the form that `output` says."""
    check_beside(sd.config, prompt)
    return draw_request(sd, check(sd.config, prompt, options), plan_of(sd, options))


@takes_options
def hires(
    sd: StableDiffusion,
    prompt: str | Sequence[str] | Cond | None,
    scale: float = 2.0,
    strength: float = 0.6,
    upscale: str = "latents",
    hires_steps: int | None = None,
    options: TaskOptions = None,
):
    """Draws large pictures in two walks: txt2img at height and width, then img2img on the enlarged result.

    A model composes a picture well only near the size that it was trained at; the second walk adds the detail. The
    results have the form of txt2img's; output "trajectory" is the second walk's. The second walk draws its own noise
    from the same seeds.
    scale: how many times larger the sides become, from 1 on; they are rounded to what the first walk's are multiples
        of, up to sd.config.multiple.
    strength: of the second walk, as for img2img.
    upscale: "latents", bicubic, is soft until it is refined and needs a strength from about 0.5 on; "pixels" decodes,
        enlarges with Lanczos and encodes again, which keeps edges sharp at a lower strength too.
    hires_steps: of the second walk; None: as many as of the first.
    SdjaxError: a model that takes channels beside x, which are of one size.
    """
    needs_nothing_beside(sd.config, "hires")
    if not is_number(scale, 1):
        raise SdjaxError(f"scale {scale!r}: a number from 1 on")
    if upscale not in UPSCALE:
        raise SdjaxError(f"upscale {upscale!r}: one of {', '.join(UPSCALE)}")
    if hires_steps is not None and not is_whole(hires_steps, 1, sd.config.schedule.timesteps):
        raise SdjaxError(
            f"hires_steps {hires_steps!r}: a whole number from 1 to {sd.config.schedule.timesteps}, or None"
        )
    small = check(sd.config, prompt, options)
    return draw_hires(sd, small, enlarged(sd, small.shape, scale), strength, upscale, hires_steps)


def enlarged(sd: StableDiffusion, shape: tuple[int, int, int], scale: float) -> tuple[int, int]:
    """Returns the sides of latents of `shape` [h, w, C] that are `scale` times larger, rounded to what h and w are
    multiples of, up to sd.config.multiple."""
    multiple = math.gcd(sd.config.unet.factor, *shape[:2])
    return tuple(max(round(side * scale / multiple), 1) * multiple for side in shape[:2])


def draw_hires(
    sd: StableDiffusion,
    small: Request,
    sides: tuple[int, int],
    strength: float,
    upscale: str,
    hires_steps: int | None,
    watch: Callable[[int, int, Callable[[], Array]], None] | None = None,
):
    """Draws a request of `hires`, whose arguments these are. sides: of the large latents. watch: see `draw_request`."""
    options = small.options
    again = replace(options, latents=None, steps=hires_steps or options.steps)
    first, second = plan_of(sd, options), plan_of(sd, again, given(strength))
    small = small._replace(options=replace(options, output=upscale, finished=None))
    size = {"height": sides[0] * sd.config.vae.factor, "width": sides[1] * sd.config.vae.factor}
    scales = guidance_scales(sd.config, again) if hires_steps else small.scales
    large = small._replace(shape=(*sides, small.shape[2]), scales=scales, options=replace(again, **size))
    read = read_sides(sd, small)
    count = lambda request, plan: len(plan_work(sd, request, read, made=False)) * evaluations(plan)
    pictures = draw_request(sd, small, first, after=count(large, second), sides=read, watch=watch)
    sides = sides if upscale == "latents" else [*size.values()]
    pictures = np.stack([stages.enlarge(picture, *sides, pixels=upscale == "pixels") for picture in pictures])
    before = count(small, first)
    return draw_request(sd, large, second, pictures, stream=HIRES, before=before, sides=read, watch=watch)
