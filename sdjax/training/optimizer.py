"""Optimisers and learning rates by name."""

from typing import Any

import jax
import optax.contrib

from sdjax.errors import SdjaxError
from sdjax.types import Params


def make_optimizer(
    name: str, learning_rate: float, steps: int, warmup: int, decay: str, clip: float = 1.0
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """An optimiser by name with linear warm-up and then a constant, cosine or linear course down to 0."""
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
    """What Muon orthogonalises (arXiv 2502.16982): kernels as [inputs, outputs]; None, Adam, for all other leaves."""

    def spec(path, leaf):
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(spec, params)
