"""The task that enlarges small pictures."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from sdjax.conditioning.lowres import encode_lowres
from sdjax.errors import SdjaxError
from sdjax.families.table import family_of
from sdjax.image.pixels import read_images
from sdjax.model.value import StableDiffusion
from sdjax.tasks.engine import draw_request, repeat_for
from sdjax.tasks.options import TaskOptions, takes_options
from sdjax.tasks.plans import plan_of
from sdjax.tasks.request import check
from sdjax.types import Cond


@takes_options
def upscale(
    sd: StableDiffusion,
    prompt: str | Sequence[str] | Cond | None,
    pictures,
    noise_level: int = 20,
    options: TaskOptions = None,
):
    """Returns `pictures` enlarged by sd.config.vae.factor, four times for the x4 upscaler and bsr_sr.

    The results have the form of txt2img's. A large picture goes through the UNet in tiles, whose predictions are
    blended at every step, in the memory that one tile takes.
    prompt: what is in the pictures, for the x4 upscaler; None for bsr_sr.
    pictures: PIL, a list of them, or float [Q, h, w, 3] in [-1, 1]; one for all prompts, or one for each. PIL pictures
        are rounded down to multiples of sd.config.unet.factor.
    noise_level: see `sdjax.encode_lowres`; the noise of image i comes from seed + i.
    """
    config = sd.config
    if family_of(config).concat != "lowres":
        raise SdjaxError(f"pictures: {config.name} takes no small pictures, use img2img or hires")
    for name in ("height", "width"):
        if getattr(options, name) is not None:
            raise SdjaxError(f"{name} {getattr(options, name)!r}: None, it follows from the pictures' size")
    small = read_images(pictures, None, None, config.unet.factor, 3, config.unet.unit)
    height, width = (side * config.vae.factor for side in small.shape[1:3])
    options = replace(options, height=height, width=width)
    if prompt is None and config.text is None:
        prompt = Cond()
    request = check(config, prompt, options, len(small))
    beside = encode_lowres(sd, repeat_for(small, request.count), noise_level, options.seed)
    return draw_request(sd, request, plan_of(sd, options), beside=jax.tree.map(np.asarray, beside))
