"""The one loop of all samplers. A sampler is a table of rows, and each row updates x (variance preserving) as follows:

    x0 = denoiser(x, sigma)
    D  = p x + q x0                                   what goes into the history: x0, or eps = (x - alpha x0) / s
    x  = a x + sum_k b_k D_(n-k) + c noise            k = 0 is this row's D; at most 3 earlier ones

All coefficients are planned in float64 numpy outside the trace. k-diffusion's x is ours times sqrt(1 + sigma^2), so
its linear updates are rows too. A second evaluation within a step (Heun, the first step of PLMS) is a row of its own.
It corrects the x that the row before it made, and with `push` False its D stays out of the history.

`sample` needs only a denoiser, of any kind and for any shape [B, ...]. All of it can be jitted and differentiated:

    table = plan("dpmpp_2m", make_schedule(ScheduleConfig()), 20, sigmas="karras")
    x = sample(table.rows, denoiser, start(table, noise)).x
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.guidance import Denoiser
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.rows import HISTORY, Row
from sdjax.errors import SdjaxError
from sdjax.types import Array


class Trace(NamedTuple):
    """The denoiser's arguments and results at every row of a walk."""

    x: Array  # [R, B, h, w, C]: the x that the denoiser was called with
    x0: Array  # [R, B, h, w, C]: the x0 that it returned


class State(NamedTuple):
    """The state of a walk between two rows."""

    x: Array  # [B, h, w, C]
    history: Array  # [HISTORY - 1, B, h, w, C]: earlier D's, newest first
    row: Array  # int32 []: number of rows done


def start(plan: Plan, noise: Array, x0: Array | None = None) -> State:
    """Returns the state before the first row.

    noise: unit noise [B, h, w, C].
    x0: [B, h, w, C], what to start from if the plan has a strength; None starts from noise alone.
    """
    noise = jnp.asarray(noise, jnp.float32)
    x = plan.start * noise if x0 is None else plan.signal * x0 + plan.start * noise
    return State(x, jnp.zeros((HISTORY - 1, *noise.shape), jnp.float32), jnp.int32(0))


@overload
def sample(
    rows: Row,
    denoiser: Denoiser,
    state: State,
    noise_fn: Callable[[Array], Array] | None = None,
    keep: Literal[False] = False,
    remat: bool = False,
) -> State: ...
@overload
def sample(
    rows: Row,
    denoiser: Denoiser,
    state: State,
    noise_fn: Callable[[Array], Array] | None = None,
    *,
    keep: Literal[True],
    remat: bool = False,
) -> tuple[State, Trace]: ...
@overload
def sample(
    rows: Row,
    denoiser: Denoiser,
    state: State,
    noise_fn: Callable[[Array], Array] | None = None,
    keep: bool = False,
    remat: bool = False,
) -> State | tuple[State, Trace]: ...
def sample(
    rows: Row,
    denoiser: Denoiser,
    state: State,
    noise_fn: Callable[[Array], Array] | None = None,
    keep: bool = False,
    remat: bool = False,
) -> State | tuple[State, Trace]:
    """Walks `state` down `rows` and returns the state after the last row, and with `keep` also a Trace.

    rows: a plan's rows, or a slice of them: the returned state continues with the next slice.
    noise_fn: noise_fn(row) returns unit noise [B, h, w, C] for row number `row`. It is called only where c is not 0.
        It may be None if c is always 0; if not, that is an SdjaxError, or NaN results if `rows` are traced.
    keep: return (state, Trace). Padding rows repeat x there and have x0 = 0.
    remat: compute the inside of every row again in the backward pass. This keeps x of every row in memory instead of
        every activation of the model.
    """

    traced = isinstance(rows.c, jax.core.Tracer)
    if noise_fn is None and not traced and np.any(rows.c):
        raise SdjaxError("noise_fn None: this plan adds fresh noise, a function of the row expected")
    if noise_fn is None and traced:  # NaN is better than a walk that silently lacks its noise
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
