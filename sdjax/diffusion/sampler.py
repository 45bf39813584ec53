"""Samplers are tables. Every one of them walks x, variance preserving, down the rows of its plan by one shared step:

    x0 = denoiser(x, sigma)
    D  = p x + q x0                                   what goes into the history: x0, or eps = (x - alpha x0) / s
    x  = a x + sum_k b_k D_(n-k) + c noise            k = 0 is this row's D; at most 3 earlier ones

All coefficients are planned in float64 numpy outside the trace. k-diffusion's x is ours times sqrt(1 + sigma^2), so
its linear updates are rows too. A second evaluation within a step (Heun, the first step of PLMS) is a row of its
own, corrected relative to the x that the row before it made; `push` False keeps its D out of the history.

It needs no more than a denoiser, of whatever kind and shape [B, ...]; all of it can be jitted and differentiated:

    table = plan("dpmpp_2m", make_schedule(ScheduleConfig()), 20, sigmas="karras")
    x = sample(table.rows, denoiser, start(table, noise)).x
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.guidance import Denoiser
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.tables import (
    HISTORY,
    Row,
)
from sdjax.errors import SdjaxError
from sdjax.types import Array


class Trace(NamedTuple):
    """What `sample` saw on its way, for every row."""

    x: Array  # [R, B, h, w, C]: what the denoiser was called with
    x0: Array  # [R, B, h, w, C]: what it answered


class State(NamedTuple):
    x: Array  # [B, h, w, C]
    history: Array  # [HISTORY - 1, B, h, w, C]: earlier D's, newest first
    row: Array  # int32 []: rows done


def start(plan: Plan, noise: Array, x0: Array | None = None) -> State:
    """The state before the first row, from unit noise [B, h, w, C], and x0 where the plan has a strength."""
    noise = jnp.asarray(noise, jnp.float32)
    x = plan.start * noise if x0 is None else plan.signal * x0 + plan.start * noise
    return State(x, jnp.zeros((HISTORY - 1, *noise.shape), jnp.float32), jnp.int32(0))


def sample(
    rows: Row,
    denoiser: Denoiser,
    state: State,
    noise_fn: Callable[[Array], Array] | None = None,
    keep: bool = False,
    remat: bool = False,
) -> State | tuple[State, Trace]:
    """Walks `state` down `rows` (a plan's, or any slice of them: the state carries on). The one loop of all samplers.

    `noise_fn(row)` gives unit noise [B, h, w, C] for row number `row`; it is called only where c is not 0, and may be
    None where it never is: SdjaxError else, or NaN where `rows` are traced.
    `keep` returns a Trace too; rows of padding repeat x and have x0 = 0. `remat` makes gradients forget what happened
    within a row and compute it again: memory for x of every row instead of every activation of the model.
    """

    traced = isinstance(rows.c, jax.core.Tracer)
    if noise_fn is None and not traced and np.any(rows.c):
        raise SdjaxError("noise_fn None: this plan adds fresh noise, a function of the row expected")
    if noise_fn is None and traced:  # NaN rather than a walk without its noise
        noise_fn = lambda _: jnp.full_like(state.x, jnp.nan)

    def advance(state: State, row: Row) -> tuple[State, Array]:
        x, history, n = state
        x0 = denoiser(x, row.sigma)
        d = row.p * x + row.q * x0
        ds = jnp.concatenate([d[None], history])
        x = row.a * x + sum(row.b[k] * ds[k] for k in range(HISTORY))  # not a matmul: those may run in TF32
        if noise_fn is not None:
            x = jax.lax.cond(row.c != 0, lambda x: x + row.c * noise_fn(n), lambda x: x, x)
        return State(x, jnp.where(row.push, ds[:-1], history), n + 1), x0

    def step(state: State, row: Row):
        after, x0 = jax.lax.cond(row.live, advance, lambda state, row: (state, jnp.zeros_like(state.x)), state, row)
        return after, Trace(state.x, x0) if keep else None

    end, trace = jax.lax.scan(jax.checkpoint(step) if remat else step, state, rows)
    return (end, trace) if keep else end
