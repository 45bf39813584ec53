"""The options of ControlNets and T2I-Adapters, checked against the model."""

from typing import Any, NamedTuple

import numpy as np

from sdjax.checks import is_number
from sdjax.diffusion.plan import Plan
from sdjax.errors import SdjaxError, did_you_mean, log
from sdjax.families.config import Config
from sdjax.model.control import Control, as_controls, check_fits, check_hints, check_scale, each_of, soft_weights
from sdjax.networks.control.config import ControlConfig
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.options_control import CONTROL_OPTIONS, MODES

DEFAULTS = {option.name: option.default for option in CONTROL_OPTIONS}


class AskedControl(NamedTuple):
    """One control of a request."""

    control: Control
    pictures: np.ndarray  # float32 [Q, H, W, C] in [0, 1]; Q is 1 or divides the number of images
    weights: np.ndarray  # float64 [n]: of each residual in a step in which the control is on
    interval: tuple[float, float]
    alone: bool  # does it steer the conditional side alone?


def is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))


def check_control(config: Config, options: TaskOptions, count: int, size: tuple[int, int]) -> list[AskedControl]:
    """Returns the controls that the options ask for, for `count` images of a size, (height, width).

    SdjaxError: one is no control, or not for this model, or its picture, scale, interval or mode is not right.
    """
    control, several = options.control, isinstance(options.control, (list, tuple))
    controls = as_controls(control)
    if not controls:
        for name in DEFAULTS:
            if name != "control" and (value := getattr(options, name)) is not DEFAULTS[name]:
                if isinstance(value, (int, float, str, tuple)) and value == DEFAULTS[name]:
                    continue
                raise SdjaxError(f"{name}: needs a control")
        return []
    found, columns = (
        [],
        {
            "control_image": each_of("control_image", options.control_image, control, lambda value: not several),
            "control_scale": each_of("control_scale", options.control_scale, control, is_number),
            "control_interval": each_of("control_interval", options.control_interval, control, is_pair),
            "control_mode": each_of(
                "control_mode", options.control_mode, control, lambda value: isinstance(value, str)
            ),
        },
    )
    for one, image, scale, interval, mode in zip(controls, *columns.values(), strict=True):
        check_fits(config, one)
        if not is_pair(interval) or not 0 <= interval[0] < interval[1] <= 1:
            raise SdjaxError(f"control_interval {interval!r}: two numbers, 0 <= start < end <= 1, expected")
        if mode not in MODES:
            near = did_you_mean(mode, MODES) if isinstance(mode, str) else ""
            raise SdjaxError(f"control_mode {mode!r}: one of {', '.join(MODES)}{near}")
        weights = check_scale("control_scale", scale, one)
        if mode != "balanced":
            weights = weights * soft_weights(one.config)
        alone = mode == "control" or (isinstance(one.config, ControlConfig) and one.config.pooled)
        pictures = check_hints("control_image", image, one, size, count)
        found.append(AskedControl(one, pictures, weights, (float(interval[0]), float(interval[1])), alone))
    return found


def weights_of(asked: AskedControl, plan: Plan) -> np.ndarray:
    """Returns the weight of each residual in each step of a plan, float32 [S, n]; zeros where the control is off."""
    found = np.zeros((len(plan.levels), len(asked.weights)), np.float32)
    found[steps_on(asked, plan)[0]] = asked.weights
    return found


def steps_on(asked: AskedControl, plan: Plan) -> tuple[list[int], int]:
    """Returns the places of the steps of a plan in which a control is on, and N, the number of steps that run.

    It is on in step i where i / N >= start and (i + 1) / N <= end, in float64, as in diffusers'
    pipeline_controlnet.py.
    """
    total, first = int(np.sum(plan.levels > 0)), int(np.sum(plan.levels > plan.rows.sigma[0]))
    count, (start, end) = total - first, asked.interval  # strength leaves out the first ones
    return [first + i for i in range(count) if i / count >= start and (i + 1) / count <= end], count


def remark_intervals(asked: list[AskedControl], plan: Plan) -> None:
    """Logs a line for each control that is on in no step of a plan."""
    for one in asked:
        on, count = steps_on(one, plan)
        if not on:
            start, end = one.interval
            log.warning("control_interval %g %g: holds none of %d steps, the control has no effect", start, end, count)
