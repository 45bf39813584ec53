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

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.guidance import Denoiser
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.schedule import (
    NoiseSchedule,
    karras_sigmas,
    leading_timesteps,
    linspace_timesteps,
    open_linspace_timesteps,
    sigma_to_t,
    t_to_sigma,
    trailing_timesteps,
)
from sdjax.diffusion.tables import (
    HISTORY,
    Grid,
    Row,
    ddim_rows,
    dpmpp_2m_rows,
    heun_rows,
    lcm_rows,
    lcm_timesteps,
    lms_rows,
    plms_rows,
    unipc_rows,
)
from sdjax.errors import SdjaxError
from sdjax.types import Array


class Plan(NamedTuple):
    """float32 arrays: nothing but the padded number of rows is static."""

    signal: Array  # []: the walk starts at x = signal x0 + start eps; 0 where it starts from noise alone
    start: Array  # []
    rows: Row  # [R, ...] each
    levels: Array  # [R]: sigma at the start of every step, those that strength leaves out too; then zeros


class Trace(NamedTuple):
    """What `sample` saw on its way, for every row."""

    x: Array  # [R, B, h, w, C]: what the denoiser was called with
    x0: Array  # [R, B, h, w, C]: what it answered


class State(NamedTuple):
    x: Array  # [B, h, w, C]
    history: Array  # [HISTORY - 1, B, h, w, C]: earlier D's, newest first
    row: Array  # int32 []: rows done


class Sampler(NamedTuple):
    """A table of rows and the grids that it is laid over."""

    name: str
    rows: Callable[..., list[Row]]  # rows(grid), or rows(grid, eta) where eta is not None
    spacings: Mapping[str, Callable[[int, int], np.ndarray]]  # name -> timesteps(total, steps); its own default first
    eta: float | None = None  # share of fresh noise, 0 .. 1, when none is asked for; None: takes none
    clean: bool = True  # the walk ends at sigma 0, not at timestep 0's
    scaled: bool = False  # it starts at weight s of the first level, not at 1
    karras: bool = False  # takes sigmas="karras"
    infinite: bool = True  # may start at an infinite sigma (zero terminal SNR): not where eps is extrapolated


WHOLE = {"leading": leading_timesteps, "trailing": trailing_timesteps, "linspace": linspace_timesteps}
EVEN = {"linspace": linspace_timesteps, "leading": leading_timesteps, "trailing": trailing_timesteps}
OPEN = EVEN | {"linspace": open_linspace_timesteps}
SIGMAS = ("default", "karras")

#: name -> Sampler. A new sampler is a new function of rows in tables.py and an entry here.
samplers: Mapping[str, Sampler] = MappingProxyType(
    {
        sampler.name: sampler
        for sampler in (
            Sampler("ddim", ddim_rows, WHOLE, eta=0.0, clean=False),
            Sampler("plms", plms_rows, WHOLE, clean=False, infinite=False),
            Sampler("ddpm", ddim_rows, WHOLE, eta=1.0),
            Sampler("euler", partial(ddim_rows, eta=0.0), EVEN, scaled=True, karras=True),
            Sampler("euler_a", ddim_rows, EVEN, eta=1.0, scaled=True, karras=True),
            Sampler("heun", heun_rows, EVEN, scaled=True, karras=True, infinite=False),
            Sampler("lms", lms_rows, EVEN, scaled=True, karras=True, infinite=False),
            Sampler("dpmpp_2m", dpmpp_2m_rows, OPEN, karras=True),
            Sampler("dpmpp_2m_sde", dpmpp_2m_rows, OPEN, eta=1.0, karras=True),
            Sampler("unipc", unipc_rows, OPEN, karras=True),
            Sampler("lcm", lcm_rows, {"lcm": lcm_timesteps}),
        )
    }
)


def plan(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    eta: float | None = None,
    sigmas: str = "default",
    spacing: str | None = None,
    strength: float | None = None,
) -> Plan:
    """The table of `samplers[name]`, padded to the power of two that holds two rows a step, and at least 32.

    So the length that is compiled for depends on `steps` alone, and on few of them: not on the sampler or strength.
    eta: share of fresh noise, 0 .. 1; None is the sampler's own. sigmas: "default", the timesteps', or "karras",
    `karras_sigmas`. spacing of the timesteps: "leading", "trailing" or "linspace"; None is the sampler's own.
    strength: None walks from noise; a number in (0, 1] from an x0 with noise, the last int(steps strength) steps, as
    diffusers counts them: noised to the level of the first of those, and denoised from there.
    SdjaxError: unknown names, steps outside 1 .. N, eta outside [0, 1], and what the sampler does not take.
    """
    if not isinstance(name, str) or name not in samplers:
        raise SdjaxError(f"sampler {name!r}: unknown, one of {', '.join(samplers)}")
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not whole or not 1 <= steps <= schedule.timesteps:
        raise SdjaxError(f"steps {steps!r}: a whole number from 1 to {schedule.timesteps}")
    if eta is not None and not (isinstance(eta, (int, float, np.number)) and 0.0 <= eta <= 1.0):
        raise SdjaxError(f"eta {eta!r}: a number from 0 to 1")
    if not isinstance(sigmas, str) or sigmas not in SIGMAS:
        raise SdjaxError(f"sigmas {sigmas!r}: one of {', '.join(SIGMAS)}")
    sampler = samplers[name]
    takers = lambda takes: ", ".join(s.name for s in samplers.values() if takes(s))
    if eta and sampler.eta is None:
        raise SdjaxError(
            f"eta {eta}: sampler {name} takes none, it must be 0 (eta is for {takers(lambda s: s.eta is not None)})"
        )
    if sigmas == "karras" and not sampler.karras:
        raise SdjaxError(
            f"sigmas 'karras': not for sampler {name}, it must be 'default' "
            f"(karras is for {takers(lambda s: s.karras)})"
        )
    if spacing is not None and (not isinstance(spacing, str) or spacing not in sampler.spacings or sigmas == "karras"):
        takes = "none with karras sigmas" if sigmas == "karras" else f"one of {', '.join(sampler.spacings)}"
        raise SdjaxError(f"spacing {spacing!r}: sampler {name} takes {takes}")
    if schedule.ends_in_noise and (sigmas == "karras" or not sampler.infinite):
        what = "sigmas 'karras'" if sigmas == "karras" else f"sampler '{name}'"
        raise SdjaxError(
            f"{what}: not for a model of zero terminal SNR, whose first sigma is infinite; "
            f"samplers for it: {takers(lambda s: s.infinite)}"
        )
    whole = make_grid(sampler, schedule, int(steps), sigmas, spacing)
    if strength is None:
        grid, signal, first = whole, 0.0, alpha_s(whole.sigma[0])[1] if sampler.scaled and spacing != "leading" else 1.0
    else:
        left_out = steps - steps_of(strength, steps)
        grid = Grid(whole.t[left_out:], whole.sigma[left_out:])
        signal, first = alpha_s(grid.sigma[0])
    rows = sampler.rows(grid) if sampler.eta is None else sampler.rows(grid, sampler.eta if eta is None else float(eta))
    length = max(32, 1 << (2 * int(steps) - 1).bit_length())
    levels = np.zeros(length, np.float32)
    levels[:steps] = whole.sigma[:-1]
    return Plan(np.float32(signal), np.float32(first), table(rows, length), levels)


def table(rows: Sequence[Row], length: int) -> Row:
    """Rows as float32 columns [length, ...], in the form that `sample` walks; padded with rows that do nothing."""
    rows = [row._replace(b=row.b + (0.0,) * (HISTORY - len(row.b))) for row in rows]
    padding = Row(1.0, 0.0, 0.0, 1.0, (0.0,) * HISTORY, push=False, live=False)
    columns = (np.asarray(column) for column in zip(*rows, *[padding] * (length - len(rows)), strict=True))
    return Row(*(column if column.dtype == bool else column.astype(np.float32) for column in columns))


def steps_of(strength: float, steps: int) -> int:
    """int(steps strength), the steps that are walked. SdjaxError: outside (0, 1], or not even one step."""
    if isinstance(strength, bool) or not (isinstance(strength, (int, float, np.number)) and 0.0 < strength <= 1.0):
        raise SdjaxError(f"strength {strength!r}: a number above 0 and up to 1")
    if int(steps * strength) < 1:
        raise SdjaxError(
            f"strength {strength!r}: no step of {steps} is left, at least {1 / steps:.4g} is needed "
            f"(or {math.ceil(1 / strength)} steps)"
        )
    return int(steps * strength)


def make_grid(sampler: Sampler, schedule: NoiseSchedule, steps: int, sigmas: str, spacing: str | None) -> Grid:
    """The levels of a walk: the denoiser is called at all but the last."""
    if spacing is None and schedule.ends_in_noise and "trailing" in sampler.spacings:
        spacing = "trailing"  # starts at the last timestep, which is all that such a schedule is for
    if sigmas == "karras":
        levels = karras_sigmas(schedule, steps)
        t = sigma_to_t(schedule, levels)
    else:
        t = sampler.spacings[spacing or next(iter(sampler.spacings))](schedule.timesteps, steps)
        levels = t_to_sigma(schedule, t)
    return Grid(t, np.append(levels, 0.0 if sampler.clean else schedule.sigmas[0]))


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
    None where it never is.
    `keep` returns a Trace too; rows of padding repeat x and have x0 = 0. `remat` makes gradients forget what happened
    within a row and compute it again: memory for x of every row instead of every activation of the model.
    """

    if noise_fn is None and isinstance(rows.c, np.ndarray) and rows.c.any():
        raise SdjaxError("noise_fn None: this plan adds fresh noise, a function of the row expected")

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
