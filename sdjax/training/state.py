"""The training state and the pure train step: gradient, optimiser, EMA. It knows no device and no collective."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from sdjax.types import Array, Params


class TrainState(NamedTuple):
    """Everything that training carries from step to step, and that a checkpoint keeps."""

    step: Array  # int32, steps done
    skipped: Array  # int32, those steps whose loss or gradient was not finite: they changed nothing below
    bad: Array  # int32, the length of the current run of such steps
    params: Params
    opt_state: Any
    ema: Params | None  # always float32: in bfloat16 its small changes would round to none


#: (params, batch, key) -> (per-example losses [B], metrics: dict of scalars)
LossFn = Callable[[Params, Any, Array], tuple[Array, dict[str, Array]]]


def make_state(params: Params, optimizer: optax.GradientTransformation, ema: bool = True) -> TrainState:
    """Returns the state before the first step. `ema` False keeps no EMA."""
    zero = lambda: jnp.zeros((), jnp.int32)
    params = jax.tree.map(as_master, params)
    copy = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else None
    return TrainState(zero(), zero(), zero(), params, optimizer.init(params), copy)


def as_master(leaf: Array) -> Array:
    """Returns a parameter as float32, if it is a shorter float: an update is smaller than what float16 can add, and
    Adam's second moment is 0 in it."""
    short = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.dtype(leaf.dtype).itemsize < 4
    return leaf.astype(jnp.float32) if short else leaf


def trained_params(state: TrainState) -> Params:
    """Returns the weights that a run exports: the EMA, or the parameters if there is no EMA."""
    return state.params if state.ema is None else state.ema


def update_ema(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """Returns d ema + (1 - d) params with d = min(decay, (1 + n) / (10 + n)), n = step (CompVis `ema.py`)."""
    n = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p.astype(jnp.float32) - e), ema, params)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    average: Callable[[Any], Any] = lambda tree: tree,
    accumulate: int = 1,
    schedule: optax.Schedule | None = None,
) -> Callable:
    """Returns a function (state, batch, key) -> (state, metrics) that does one step.

    The key is the run's. A step's random numbers come from fold_in(key, step), and then from the example's index.
    loss_fn: see `LossFn`.
    average: the mean over devices, if there are several.
    accumulate: the batch goes through in so many parts of equal size; their mean gradient is that of the whole batch.
    schedule: its value for this update is logged as metrics["learning_rate"].
    A step whose loss or gradient is not finite is counted and changes nothing else; metrics["bad"] is the number of
    such steps in a row.
    """

    def train_step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)

        def mean_loss(params, part):
            losses, metrics = loss_fn(params, part, key)
            return losses.mean(), metrics

        gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, metrics), gradient = average(mean_over_parts(partial(gradient_of, state.params), batch, accumulate))
        norm = optax.global_norm(gradient)
        done = state.step - state.skipped
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else update_ema(state.ema, params, done + 1, ema_decay)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        bad = jnp.where(finite, 0, state.bad + 1)
        metrics = {"loss": loss, "grad_norm": norm, "bad": bad, **metrics}
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(done), jnp.float32)
        return TrainState(state.step + 1, state.skipped + ~finite, bad, *kept), metrics

    return train_step


def mean_over_parts(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """Returns the mean of function(part) over `parts` equal parts of the batch, computed one after the other.

    Part k is every `parts`-th example from k on: the examples of a batch that is split over devices do not move.
    """
    if parts == 1:
        return function(batch)
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    zeros = jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(function, first))
    add = lambda total, part: (jax.tree.map(lambda t, out: t + out / parts, total, function(part)), None)
    return jax.lax.scan(add, zeros, batch)[0]
