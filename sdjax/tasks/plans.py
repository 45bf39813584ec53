"""What the tasks share: the plan of a walk and the pictures that it starts from."""

from dataclasses import replace

import numpy as np

from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan import plan as make_plan
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.image.pixels import read_images
from sdjax.model.value import StableDiffusion
from sdjax.tasks.option import named
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.remarks import remark_size
from sdjax.tasks.request import check_size


def given(strength: float | None) -> float:
    """Returns `strength`. SdjaxError if it is None, because a plan without a strength starts from noise alone."""
    if strength is None:
        raise SdjaxError("strength None: a number above 0 and up to 1")
    return strength


def plan_of(sd: StableDiffusion, options: TaskOptions, strength: float | None = None) -> Plan:
    """Returns the plan of a walk with these options, from noise or, with a strength, from a picture."""
    return make_plan(
        options.sampler,
        make_schedule(sd.config.schedule),
        options.steps,
        options.eta,
        options.sigmas,
        options.spacing or own_spacing(sd.config, options),
        strength,
    )


def own_spacing(config: Config, options: TaskOptions) -> str | None:
    """Returns the spacing of timesteps that the model's folder asks for, if the sampler takes it."""
    sampler = named(options.sampler)
    takes = sampler is not None and config.spacing in sampler.spacings and options.sigmas == "default"
    return config.spacing if takes else None


def read(config: Config, image, options: TaskOptions) -> tuple[TaskOptions, np.ndarray]:
    """Returns the options with the size of `image`, and its pictures [Q, H, W, 3] (or latents [Q, h, w, C]).

    SdjaxError: a size that the model does not take, or latents of another size than the options ask for.
    """
    factor, channels = config.vae.factor, config.vae.latent_channels
    check_size(config, options)
    pictures = read_images(image, options.height, options.width, config.multiple, channels, config.unit)
    height, width = (side * (1 if pictures.shape[3] == 3 else factor) for side in pictures.shape[1:3])
    for name, asked, side in (("height", options.height, height), ("width", options.width, width)):
        if asked not in (None, side):
            raise SdjaxError(f"{name} {asked}: the latents of image {np.shape(image)} are of {side} pixels")
    if options.height is None or options.width is None:
        remark_size(config, (height, width))
    return replace(options, height=height, width=width), pictures
