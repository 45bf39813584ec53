"""The plan of a walk: a sampler's table over the levels of a schedule, in float64 numpy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.schedule import NoiseSchedule, karras_sigmas, sigma_to_t, t_to_sigma
from sdjax.diffusion.tables import HISTORY, Grid, Row, Sampler, samplers
from sdjax.errors import SdjaxError


class Plan(NamedTuple):
    """float32 arrays: nothing but the padded number of rows is static."""

    signal: np.ndarray  # []: the walk starts at x = signal x0 + start eps; 0 where it starts from noise alone
    start: np.ndarray  # []
    rows: Row  # [R, ...] each
    levels: np.ndarray  # [R]: sigma at the start of every step, those that strength leaves out too; then zeros


SIGMAS = ("default", "karras")


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
    if not is_whole(steps, 1, schedule.timesteps):
        raise SdjaxError(f"steps {steps!r}: a whole number from 1 to {schedule.timesteps}")
    if eta is not None and not is_number(eta, 0, 1):
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
    if not is_number(strength, 0, 1) or strength == 0:
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
