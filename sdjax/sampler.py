"""Samplers are tables. Every one of them walks x, variance preserving, down the rows of its plan by one shared step:

    x0 = denoiser(x, sigma)
    D  = p x + q x0                                   what goes into the history: x0, or eps = (x - alpha x0) / s
    x  = a x + sum_k b_k D_(n-k) + c noise            k = 0 is this row's D; at most 3 earlier ones

All coefficients are planned in float64 numpy outside the trace. k-diffusion's x is ours times sqrt(1 + sigma^2), so
its linear updates are rows too. A second evaluation within a step (Heun, the first step of PLMS) is a row of its
own, corrected relative to the x that the row before it made; `push` False keeps its D out of the history.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.denoise import Denoiser
from sdjax.errors import SdjaxError
from sdjax.schedule import NoiseSchedule, leading_timesteps
from sdjax.types import Array

HISTORY = 4  # D's that a row can use, its own included


class Row(NamedTuple):
    """One evaluation of the model and the update after it; in `Plan.rows` every field has a leading axis [R]."""

    sigma: float  # noise level that the denoiser is called with
    p: float  # D = p x + q x0
    q: float
    a: float
    b: tuple[float, ...]  # up to HISTORY weights, newest D first; [R, HISTORY] in a plan
    c: float = 0.0  # weight of fresh unit noise
    push: bool = True  # does D enter the history?
    live: bool = True  # False: padding, skipped


class Plan(NamedTuple):
    """float32 arrays: nothing but the padded number of rows is static."""

    start: Array  # []: the walk starts at x = start * unit noise
    rows: Row  # [R, ...] each


class State(NamedTuple):
    x: Array  # [B, h, w, C]
    history: Array  # [HISTORY - 1, B, h, w, C]: earlier D's, newest first
    row: Array  # int32 []: rows done


class Sampler(NamedTuple):
    """`rows(schedule, steps, **options)` -> list of Row in float64; `options` names what it takes."""

    name: str
    rows: Callable[..., list[Row]]
    options: frozenset[str] = frozenset()
    start: float = 1.0


def level(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """(alpha, s) at timestep t; before the first timestep it is t = 0's, as in CompVis, not the clean end."""
    abar = float(schedule.alphas_cumprod[max(t, 0)])
    return math.sqrt(abar), math.sqrt(1.0 - abar)


def ddim_rows(schedule: NoiseSchedule, steps: int, eta: float = 0.0) -> list[Row]:
    """DDIM, Eq. 12 and 16 of arXiv 2010.02502; eta 0 is deterministic, 1 is DDPM's variance.

    x' = alpha' x0 + sqrt(s'^2 - c^2) eps + c noise with c = eta (s' / s) sqrt(1 - abar / abar').
    """
    ts = leading_timesteps(schedule.timesteps, steps)
    rows = []
    for t, then in zip(ts, [*ts[1:], 0], strict=True):
        (alpha, s), (alpha_, s_) = level(schedule, t), level(schedule, then)
        c = eta * s_ / s * math.sqrt(1.0 - (alpha / alpha_) ** 2)
        a = math.sqrt(s_**2 - c**2) / s
        rows.append(Row(s / alpha, 0.0, 1.0, a, (alpha_ - a * alpha,), c))
    return rows


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms_rows(schedule: NoiseSchedule, steps: int) -> list[Row]:
    """PLMS, arXiv 2202.09778, as CompVis `plms.py`: DDIM's update with an Adams-Bashforth average of eps.

    The first step is a pseudo improved Euler step, x' = DDIM(x, (e(x, t) + e(x1, t1)) / 2) with x1 = DDIM(x, e(x, t)):
    steps + 1 rows. Its second evaluation only shifts x1 by half the difference and stays out of the history.
    """
    ts = leading_timesteps(schedule.timesteps, steps)
    rows = []
    for n, (t, then) in enumerate(zip(ts, [*ts[1:], 0], strict=True)):
        (alpha, s), (alpha_, s_) = level(schedule, t), level(schedule, then)
        a = alpha_ / alpha  # x' = a x + h eps is DDIM's step in terms of eps
        h = s_ - a * s
        rows.append(Row(s / alpha, 1 / s, -alpha / s, a, tuple(h * w for w in ADAMS_BASHFORTH[min(n, HISTORY - 1)])))
        if n == 0:
            rows.append(Row(s_ / alpha_, 1 / s_, -alpha_ / s_, 1.0, (h / 2, -h / 2), push=False))
    return rows


#: name -> Sampler. A new sampler is a new function of rows and an entry here.
samplers: Mapping[str, Sampler] = MappingProxyType({
    sampler.name: sampler for sampler in (
        Sampler("ddim", ddim_rows, frozenset({"eta"})),
        Sampler("plms", plms_rows),
    )
})


def plan(name: str, schedule: NoiseSchedule, steps: int, eta: float = 0.0) -> Plan:
    """The table of `samplers[name]`, padded to a power of two (at least 16) so that few lengths are ever compiled.

    SdjaxError: unknown name, steps outside 1 .. N, eta outside [0, 1] or for a sampler without it.
    """
    if name not in samplers:
        raise SdjaxError(f"sampler {name!r}: unknown, one of {', '.join(samplers)}")
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not whole or not 1 <= steps <= schedule.timesteps:
        raise SdjaxError(f"steps {steps!r}: a whole number from 1 to {schedule.timesteps}")
    if not (isinstance(eta, (int, float, np.number)) and 0.0 <= eta <= 1.0):
        raise SdjaxError(f"eta {eta!r}: a number from 0 to 1")
    sampler = samplers[name]
    if eta and "eta" not in sampler.options:
        takers = ", ".join(s.name for s in samplers.values() if "eta" in s.options)
        raise SdjaxError(f"eta {eta}: sampler {name} takes none, it must be 0 (eta is for {takers})")
    options = {"eta": float(eta)} if "eta" in sampler.options else {}
    rows = sampler.rows(schedule, int(steps), **options)
    rows = [row._replace(b=row.b + (0.0,) * (HISTORY - len(row.b))) for row in rows]
    padding = Row(1.0, 0.0, 0.0, 1.0, (0.0,) * HISTORY, push=False, live=False)
    rows += [padding] * (max(16, 1 << (len(rows) - 1).bit_length()) - len(rows))
    columns = (np.asarray(column) for column in zip(*rows, strict=True))
    return Plan(np.float32(sampler.start), Row(*(c if c.dtype == bool else c.astype(np.float32) for c in columns)))


def start(plan: Plan, noise: Array) -> State:
    """The state before the first row, from unit noise [B, h, w, C]."""
    noise = jnp.asarray(noise, jnp.float32)
    return State(plan.start * noise, jnp.zeros((HISTORY - 1, *noise.shape), jnp.float32), jnp.int32(0))


def sample(rows: Row, denoiser: Denoiser, state: State, noise_fn: Callable[[Array], Array]) -> State:
    """Walks `state` down `rows` (a plan's, or any slice of them: the state carries on). The one loop of all samplers.

    `noise_fn(row)` gives unit noise [B, h, w, C] for row number `row`; it is called only where c is not 0.
    """

    def advance(state: State, row: Row) -> State:
        x, history, n = state
        d = row.p * x + row.q * denoiser(x, row.sigma)
        ds = jnp.concatenate([d[None], history])
        x = row.a * x + sum(row.b[k] * ds[k] for k in range(HISTORY))  # not a matmul: those may run in TF32
        x = jax.lax.cond(row.c != 0, lambda x: x + row.c * noise_fn(n), lambda x: x, x)
        return State(x, jnp.where(row.push, ds[:-1], history), n + 1)

    def step(state: State, row: Row):
        return jax.lax.cond(row.live, advance, lambda state, row: state, state, row), None

    return jax.lax.scan(step, state, rows)[0]
