"""ControlNets and T2I-Adapters in a walk: what they see is computed once, what they add at every step that they are on.

A step's weights are a table over the steps of the plan, so that scales and intervals compile nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.guidance import step_at
from sdjax.diffusion.plan import Plan
from sdjax.families.config import Config
from sdjax.model.control import input_of, joined, look, residuals_of
from sdjax.model.functions import context_keys
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.unet.blocks import KeysValues, Residuals, TimeShifts
from sdjax.networks.unet.network import time_shifts
from sdjax.nn.layers import precise
from sdjax.tasks.request import Request
from sdjax.tasks.request_control import AskedControl, check_control, weights_of
from sdjax.types import Array, Cond, Params


@partial(jax.tree_util.register_dataclass, data_fields=["params", "seen", "weights"], meta_fields=["config", "alone"])
@dataclass(frozen=True)
class Steer:
    """One control in a walk of B images; config and alone are static, the rest is traced."""

    config: ControlConfig | AdapterConfig
    alone: bool  # on the conditional side alone
    params: Params
    seen: Array | Residuals  # what `look` returns of its pictures, [B, ...]
    weights: Array  # [S, n]: see `weights_of`


def steers_of(
    asked: Sequence[AskedControl], params: Sequence[Params], hints: Sequence[Array], plan: Plan, dtype: Any
) -> tuple[Steer, ...]:
    """Returns the controls of a walk.

    params: theirs, on the devices, in the dtype of the computation. hints: the pictures of each, [B, H, W, C].
    """
    found = []
    for one, own, pictures in zip(asked, params, hints, strict=True):
        config = one.control.config
        found.append(Steer(config, one.alone, own, look(own, pictures, config, dtype), weights_of(one, plan)))
    return tuple(found)


def own_keys(params: Sequence[Params], context: Array | None, dtype: Any) -> KeysValues:
    """Returns the keys and values of all controls, to stand beside the UNet's; see `keys_of`."""
    found = {}
    for number, own in enumerate(params):
        keys = context_keys(own, context, dtype)
        found |= {f"control {number}/{name}": pair for name, pair in keys.items()}
    return found


def keys_of(context: KeysValues, number: int) -> KeysValues:
    """Returns the keys and values of one control."""
    start = f"control {number}/"
    return {name.removeprefix(start): pair for name, pair in context.items() if name.startswith(start)}


def steering(steers: Sequence[Steer], levels: Array, t: Array, dtype: Any):
    """Returns f. f(x, rows, sigma, cond) is what all controls add in the UNet at the noise level sigma.

    levels: [S], the sigmas at which steps start. t: [R], the timesteps that f may be called at; rows: [B] places there.
    x: the UNet's input, of B images, or of the unconditional side and then others. cond: of as many.
    """
    with precise(dtype):
        shifts = [
            time_shifts(steer.params, t, steer.config.unet, dtype)
            if isinstance(steer.config, ControlConfig) and not steer.config.unet.takes_vector
            else None
            for steer in steers
        ]

    def add(x: Array, rows: Array, sigma: Array, cond: Cond) -> Residuals | None:
        found = []
        for number, (steer, own) in enumerate(zip(steers, shifts, strict=True)):
            time = t[rows] if own is None else jax.tree.map(itemgetter(rows), own)
            context = keys_of(cond.context, number)
            weights = steer.weights[step_at(levels, sigma)]
            found.append(added(steer, weights, input_of(steer.config, x), time, context, cond.vector, dtype))
        return joined(found)

    return add


def added(
    steer: Steer,
    weights: Array,
    x: Array,
    time: Array | TimeShifts,
    context: KeysValues,
    vector: Array | None,
    dtype: Any,
) -> Residuals:
    """Returns what one control adds. Where all weights are 0, its network does not run. See `residuals_of`."""
    count = len(jax.tree.leaves(steer.seen)[0])
    skipped = count if steer.alone and len(x) > count else 0  # the unconditional side comes first
    times = (len(x) - skipped) // count
    seen = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times), steer.seen)
    inputs = jax.tree.map(itemgetter(slice(skipped, None)), (x, time, context, vector))
    weights = weights[skipped:] if weights.ndim == 2 else weights

    def run() -> Residuals:
        return residuals_of(steer.config, steer.params, seen, weights, *inputs, dtype)

    shapes = jax.eval_shape(run)
    rest = lambda: jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    found = jax.lax.cond(jnp.any(weights != 0), run, rest)
    if not skipped:
        return found
    return jax.tree.map(lambda leaf: jnp.concatenate([jnp.zeros_like(leaf[:count]), leaf]), found)


def controls_of(config: Config, request: Request) -> tuple[list[AskedControl], tuple[np.ndarray, ...] | None]:
    """Returns the controls of a request, and their pictures, one for each image; None without controls."""
    size = tuple(side * config.vae.factor for side in request.shape[:2])
    asked = check_control(config, request.options, request.count, size)
    hints = tuple(np.repeat(one.pictures, request.count // len(one.pictures), axis=0) for one in asked)
    return asked, hints or None
