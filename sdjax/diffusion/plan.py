"""The plan of a walk: a sampler's table of coefficients for the noise levels of a schedule.

It is computed in float64 numpy and returned as float32.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.rows import HISTORY, Grid, Row
from sdjax.diffusion.schedule import SIGMAS, NoiseSchedule, sigma_to_t, t_to_sigma
from sdjax.diffusion.tables import Sampler, samplers
from sdjax.errors import SdjaxError, did_you_mean


class Plan(NamedTuple):
    """A plan as float32 arrays (and flags). Only the padded number of rows R is static for jit."""

    signal: np.ndarray  # []: the walk starts at x = signal x0 + start eps; 0 if it starts from noise alone
    start: np.ndarray  # []: the weight of the noise there
    rows: Row  # every field [R, ...]
    levels: np.ndarray  # [R]: sigma at the start of every step, also of those that strength leaves out; then zeros


def plan(
    name: str | Sampler,
    schedule: NoiseSchedule,
    steps: int,
    eta: float | None = None,
    sigmas: str = "default",
    spacing: str | None = None,
    strength: float | None = None,
) -> Plan:
    """Returns the Plan of a walk with the sampler `samplers[name]`, or with a Sampler of the caller's own.

    schedule: the model's noise schedule, of N timesteps.
    steps: number of steps, 1 .. N.
    eta: share of fresh noise, 0 .. 1; None is the sampler's own value.
    sigmas: the noise levels, a name in SIGMAS: "default" are those of the timesteps.
    spacing: of the timesteps, "leading", "trailing" or "linspace"; None is the sampler's own.
    strength: None walks from pure noise. A number in (0, 1] walks from an x0: the last int(steps strength) steps are
        taken, as diffusers counts them, and x0 is noised to the level of the first of these.

    The rows are padded to a power of two that holds two rows a step, at least 32. So the compiled length depends on
    `steps` alone, not on the sampler or the strength, and there are few different lengths.
    SdjaxError: an unknown name, a value out of its range, or an option that the sampler does not take.
    """
    sampler = name if isinstance(name, Sampler) else samplers.get(name) if isinstance(name, str) else None
    if sampler is None:
        raise SdjaxError(f"sampler {name!r}: unknown, one of {', '.join(samplers)}{did_you_mean(name, samplers)}")
    name = sampler.name
    if not is_whole(steps, 1, schedule.timesteps):
        raise SdjaxError(f"steps {steps!r}: a whole number from 1 to {schedule.timesteps}")
    if eta is not None and not is_number(eta, 0, 1):
        raise SdjaxError(f"eta {eta!r}: a number from 0 to 1")
    if not isinstance(sigmas, str) or sigmas not in SIGMAS:
        raise SdjaxError(f"sigmas {sigmas!r}: one of {', '.join(SIGMAS)}")
    takers = lambda takes: ", ".join(s.name for s in samplers.values() if takes(s))
    if eta and sampler.eta is None:
        raise SdjaxError(
            f"eta {eta}: sampler {name} takes none, it must be 0 (eta is for {takers(lambda s: s.eta is not None)})"
        )
    if sigmas not in sampler.sigmas:
        raise SdjaxError(
            f"sigmas '{sigmas}': not for sampler {name}, it must be 'default' "
            f"({sigmas} is for {takers(lambda s: sigmas in s.sigmas)})"
        )
    spaced = sigmas == "default"
    if spacing is not None and (not isinstance(spacing, str) or spacing not in sampler.spacings or not spaced):
        takes = f"one of {', '.join(sampler.spacings)}" if spaced else f"none with {sigmas} sigmas"
        raise SdjaxError(f"spacing {spacing!r}: sampler {name} takes {takes}")
    if schedule.ends_in_noise and not (SIGMAS[sigmas].infinite and sampler.infinite):
        what = f"sampler '{name}'" if SIGMAS[sigmas].infinite else f"sigmas '{sigmas}'"
        raise SdjaxError(
            f"{what}: not for a model of zero terminal SNR, whose first sigma is infinite; "
            f"samplers for it: {takers(lambda s: s.infinite)}"
        )
    whole = make_grid(sampler, schedule, int(steps), sigmas, spacing)
    if strength is None:
        grid, signal, first = whole, 0.0, alpha_s(whole.sigma[0])[1] if sampler.scaled and spacing != "leading" else 1.0
    else:
        left_out = steps - steps_of(strength, steps)
        grid = Grid(whole.t[left_out:], whole.sigma[left_out:], int(steps))
        signal, first = alpha_s(grid.sigma[0])
    rows = sampler.rows(grid) if sampler.eta is None else sampler.rows(grid, sampler.eta if eta is None else float(eta))
    length = max(32, 1 << (2 * int(steps) - 1).bit_length())
    levels = np.zeros(length, np.float32)
    levels[:steps] = whole.sigma[:-1]
    return Plan(np.float32(signal), np.float32(first), table(rows, length), levels)


def table(rows: Sequence[Row], length: int) -> Row:
    """Returns the rows as columns [length, ...] (float32, flags bool), the form that `sample` walks. They are padded
    with rows that do nothing."""
    rows = [row._replace(b=row.b + (0.0,) * (HISTORY - len(row.b))) for row in rows]
    padding = Row(1.0, 0.0, 0.0, 1.0, (0.0,) * HISTORY, push=False, live=False)
    columns = (np.asarray(column) for column in zip(*rows, *[padding] * (length - len(rows)), strict=True))
    return Row(*(column if column.dtype == bool else column.astype(np.float32) for column in columns))


def steps_of(strength: float, steps: int) -> int:
    """Returns int(steps strength), the number of steps that are walked.

    SdjaxError: strength is outside (0, 1], or leaves no step.
    """
    if not is_number(strength, 0, 1) or strength == 0:
        raise SdjaxError(f"strength {strength!r}: a number above 0 and up to 1")
    if int(steps * strength) < 1:
        raise SdjaxError(
            f"strength {strength!r}: no step of {steps} is left, at least {1 / steps:.4g} is needed "
            f"(or {math.ceil(1 / strength)} steps)"
        )
    return int(steps * strength)


def make_grid(sampler: Sampler, schedule: NoiseSchedule, steps: int, sigmas: str, spacing: str | None) -> Grid:
    """Returns the noise levels that a walk visits; the denoiser is called at all but the last. See `plan` for the
    arguments, which are not checked here."""
    if spacing is None and schedule.ends_in_noise and "trailing" in sampler.spacings:
        spacing = "trailing"  # it starts at the last timestep, the one that such a schedule adds
    if (chosen := SIGMAS[sigmas].sigmas) is not None:
        levels = chosen(schedule, steps)
        t = sigma_to_t(schedule, levels)
    else:
        t = sampler.spacings[spacing or next(iter(sampler.spacings))](schedule.timesteps, steps)
        levels = t_to_sigma(schedule, t)
    return Grid(t, np.append(levels, 0.0 if sampler.clean else schedule.sigmas[0]))
