"""Training state and the one pure train step: gradient, optimiser, EMA. No device and no collective in here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from sdjax.errors import SdjaxError
from sdjax.types import Array, Params


class TrainState(NamedTuple):
    step: Array  # int32, steps done
    params: Params
    opt_state: Any
    ema: Params  # float32 whatever params are: in bfloat16 it would never move


#: (params, batch, key) -> (per-example losses [B], metrics: dict of scalars)
LossFn = Callable[[Params, Any, Array], tuple[Array, dict[str, Array]]]


def make_optimizer(name: str, learning_rate: float, steps: int, warmup: int, decay: str,
                   clip: float = 1.0) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """An optimiser by name with linear warm-up and then a constant, cosine or linear course down to 0."""
    courses = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1)),
        "linear": optax.linear_schedule(learning_rate, 0.0, max(steps - warmup, 1)),
    }
    if decay not in courses:
        raise SdjaxError(f"--decay {decay}: expected one of {', '.join(courses)}")
    ramp = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else courses[decay]
    schedule = optax.join_schedules([ramp, courses[decay]], [warmup])
    makers = {
        "adamw": lambda: optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01),
        "adafactor": lambda: optax.adafactor(schedule),
        "lion": lambda: optax.lion(schedule, weight_decay=0.01),
        "muon": lambda: optax.contrib.muon(schedule, adam_learning_rate=schedule, consistent_rms=0.2,
                                           weight_decay=0.01, muon_weight_dimension_numbers=_matrices),
    }
    if name not in makers:
        raise SdjaxError(f"--optimizer {name}: expected one of {', '.join(makers)}")
    return optax.chain(optax.clip_by_global_norm(clip), makers[name]()), schedule


def _matrices(params: Params) -> Any:
    """What Muon orthogonalises (arXiv 2502.16982): kernels as [inputs, outputs]; None, Adam, for all other leaves."""

    def spec(path, leaf):
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(spec, params)


def make_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    ema = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def update_ema(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + n) / (10 + n)) (CompVis `ema.py`)."""
    n = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p.astype(jnp.float32) - e), ema, params)


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, ema_decay: float,
                    average: Callable[[Any], Any] = lambda tree: tree) -> Callable:
    """(state, batch, key) -> (state, metrics). `average` is the mean over devices where there are several.

    The key is the run's; what a step draws comes from fold_in(key, step) and then from the example's index.
    """

    def train_step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        def mean_loss(params):
            losses, metrics = loss_fn(params, batch, jax.random.fold_in(key, state.step))
            return losses.mean(), metrics

        (loss, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        loss, metrics, gradient = average((loss, metrics, gradient))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        metrics = {"loss": loss, "grad_norm": optax.global_norm(gradient), **metrics}
        return TrainState(step, params, opt_state, update_ema(state.ema, params, step, ema_decay)), metrics

    return train_step
