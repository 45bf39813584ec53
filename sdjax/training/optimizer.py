"""Optimisers and learning rates by name."""

from typing import Any

import jax
import optax.contrib

from sdjax.errors import SdjaxError
from sdjax.types import Params


def make_optimizer(
    name: str, learning_rate: float, steps: int, warmup: int, decay: str, clip: float = 1.0
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns an optimiser, with gradients clipped to the global norm `clip`, and its learning rate's schedule.

    name: adamw, adafactor, lion or muon.
    learning_rate: the largest one, after the warm-up.
    steps: of the whole training.
    warmup: steps in which the learning rate rises linearly from 0.
    decay: the course after them: "constant", or "cosine" or "linear" down to 0 at `steps`.
    SdjaxError: an unknown name or decay.
    """
    courses = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1)),
        "linear": optax.linear_schedule(learning_rate, 0.0, max(steps - warmup, 1)),
    }
    if decay not in courses:
        raise SdjaxError(f"decay {decay}: expected one of {', '.join(courses)}")
    ramp = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else courses[decay]
    schedule = optax.join_schedules([ramp, courses[decay]], [warmup])
    makers = {
        "adamw": lambda: optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01),
        "adafactor": lambda: optax.adafactor(schedule),
        "lion": lambda: optax.lion(schedule, weight_decay=0.01),
        "muon": lambda: optax.contrib.muon(
            schedule,
            adam_learning_rate=schedule,
            consistent_rms=0.2,
            weight_decay=0.01,
            muon_weight_dimension_numbers=_matrices,
        ),
    }
    if name not in makers:
        raise SdjaxError(f"optimizer {name}: expected one of {', '.join(makers)}")
    return optax.chain(optax.clip_by_global_norm(clip), makers[name]()), schedule


def _matrices(params: Params) -> Any:
    """Tells Muon (arXiv 2502.16982) which leaves are matrices: kernels, as [inputs, outputs]; None means Adam."""

    def spec(path, leaf):
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(spec, params)
