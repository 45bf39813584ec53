"""What the tasks share: the plan of a walk and the pictures that it starts from."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np

from sdjax.devices.cost import flops
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan import plan as make_plan
from sdjax.diffusion.schedule import make_schedule, sigma_to_t
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError, log
from sdjax.families.config import Config
from sdjax.image.pixels import read_images
from sdjax.model.value import StableDiffusion
from sdjax.networks.table import PARTS, param_shapes
from sdjax.tasks.options import TaskOptions
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


LATEST = 900  # of 1000 timesteps: a walk from noise alone that begins later misses what the first ones decide


def remark_beginning(config: Config, options: TaskOptions, plan: Plan) -> None:
    """Logs a line, once a process, if a walk from noise alone begins far below the last timestep."""
    last = config.schedule.timesteps - 1
    t = float(sigma_to_t(make_schedule(config.schedule), np.float64(plan.rows.sigma[0])))
    if t < LATEST / 1000 * (last + 1) - 0.5:
        say_once(
            f"steps {options.steps}: the walk of {options.sampler} begins at t = {t:.0f} of {last}, where pictures of "
            f"one colour turn grey; spacing trailing (--spacing trailing) begins at {last}"
        )


@cache
def say_once(line: str) -> None:
    log.warning(line)


MANY = 4  # times the area of the model's own pictures: a picture's own size beyond it is told


def remark_size(config: Config, size: tuple[int, int]) -> None:
    """Logs a line, once a process, if pictures of a size (height, width) that nobody asked for are large for the model,
    with what they cost."""
    height, width = size
    if height * width <= MANY * config.size**2:
        return
    work = unet_work(config, size) / unet_work(config, (config.size, config.size))
    say_once(
        f"image: {width} x {height} pixels are drawn, {height * width / config.size**2:.0f} times the area of "
        f"{config.name}'s own {config.size} x {config.size}, and a step costs {work:.0f} times as much; height and "
        "width (--height, --width) choose another size"
    )


def unet_work(config: Config, size: tuple[int, int]) -> int:
    """Returns the multiplications and additions of a call of the UNet for one picture of a size (height, width)."""
    params, unet = param_shapes(config.unet), PARTS[type(config.unet)]
    x, *others = unet.inputs(config.unet)
    x = jax.ShapeDtypeStruct((1, *(side // config.vae.factor for side in size), x.shape[3]), x.dtype)
    return flops(
        lambda params, *inputs: unet.network(config.unet).apply({"params": params}, *inputs), params, x, *others
    )


def own_spacing(config: Config, options: TaskOptions) -> str | None:
    """Returns the spacing of timesteps that the model's folder asks for, if the sampler takes it."""
    sampler = samplers.get(options.sampler) if isinstance(options.sampler, str) else None
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
