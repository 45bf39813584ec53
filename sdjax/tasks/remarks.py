"""Lines of the log about a request: what is compiled for it, what it costs, and what may not be meant."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from sdjax.devices.cost import flops
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.schedule import make_schedule, sigma_to_t
from sdjax.errors import log
from sdjax.families.config import Config
from sdjax.model.value import StableDiffusion
from sdjax.networks.table import PARTS, param_shapes
from sdjax.tasks.option import named
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.request import Request

LATEST = 900  # of 1000 timesteps: a walk from noise alone that begins later misses what the first ones decide


def remark_beginning(config: Config, options: TaskOptions, plan: Plan) -> None:
    """Logs a line, once a process, if a walk from noise alone begins far below the last timestep."""
    last = config.schedule.timesteps - 1
    t = float(sigma_to_t(make_schedule(config.schedule), np.float64(plan.rows.sigma[0])))
    if t < LATEST / 1000 * (last + 1) - 0.5:
        say_once(
            f"steps {options.steps}: the walk of {named(options.sampler).name} begins at t = {t:.0f} of {last}, where "
            f"pictures of one colour turn grey; spacing trailing (--spacing trailing) begins at {last}"
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


ANNOUNCED: set = set()  # what this process was told that it compiles for


def announce(models: Sequence[StableDiffusion], request: Request, plan: Plan, chunk: Any, devices: list) -> None:
    """Logs a line, INFO, before a chunk of a new shape is drawn: its programs are compiled, or read from the disk."""
    options, shapes = request.options, [np.shape(leaf) for leaf in jax.tree.leaves(chunk)]
    kinds = options.output == "trajectory", options.progress is None and options.preview is None, options.guidance_fn
    key = tuple((sd.config, sd.dtype) for sd in models), len(plan.rows.live), request.shape, kinds, len(devices)
    key = (*key, tuple(shapes))
    if key in ANNOUNCED:
        return
    ANNOUNCED.add(key)
    height, width = (side * models[0].config.vae.factor for side in request.shape[:2])
    many = "1 picture" if len(chunk.seeds) == 1 else f"{len(chunk.seeds)} pictures at once"
    log.info("%s: compiling for %s of %d x %d pixels", models[0].config.name, many, width, height)
