"""Noise schedules of the forward process x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, as float64 numpy tables.

abar_t is the running product of 1 - beta. sigma_t = sqrt((1 - abar_t) / abar_t) is the same noise level in
k-diffusion's variables, x / sqrt(abar) = x0 + sigma eps. Samplers are planned from these tables outside the trace.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sdjax.errors import SdjaxError

#: Stands for sigma at zero terminal SNR, where sigma is infinite. At this size float32 cannot tell x0 = alpha x - s v
#: from -v.
TERMINAL_SIGMA = 2.0**24


@dataclass(frozen=True)
class ScheduleConfig:
    """The parameters of a noise schedule, and what the network that was trained on it predicts."""

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "epsilon"  # or "v", arXiv 2202.00512, or "x0"
    zero_terminal_snr: bool = False  # the last timestep is pure noise (arXiv 2305.08891); not with "epsilon"
    trained_betas: tuple[float, ...] | None = None  # [timesteps]: in place of those between beta_start and beta_end


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables over the timesteps t = 0 .. N-1, float64 [N] each. `make_schedule` makes them."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray  # abar: 0.99915 down to 0.0046601 for Stable Diffusion, to 0 at zero terminal SNR
    sigmas: np.ndarray  # 0.029167 up to 14.614641, or to TERMINAL_SIGMA

    @property
    def timesteps(self) -> int:
        """N, the number of timesteps."""
        return len(self.betas)

    @property
    def ends_in_noise(self) -> bool:
        """Is the last timestep pure noise? If so, a walk has to start there."""
        return self.alphas_cumprod[-1] == 0.0


@cache
def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """Returns the tables with betas = linspace(sqrt(start), sqrt(end), N)^2, as CompVis `util.py`
    make_beta_schedule("linear").

    With `zero_terminal_snr`, sqrt(abar) is shifted to end at 0 and scaled to start where it did: Algorithm 1 of arXiv
    2305.08891. SdjaxError: the prediction is epsilon as well, which says nothing about x0 in pure noise.
    """
    if config.zero_terminal_snr and config.prediction == "epsilon":
        raise SdjaxError("prediction 'epsilon': says nothing about x0 in pure noise, zero_terminal_snr needs 'v'")
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, np.float64)
    else:
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=np.float64) ** 2
    abar = np.cumprod(1.0 - betas)
    if config.zero_terminal_snr:
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        betas = 1.0 - abar / np.append(1.0, abar[:-1])
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt((1.0 - abar) / abar)
    return NoiseSchedule(betas, abar, np.minimum(sigmas, TERMINAL_SIGMA))


def leading_timesteps(total: int, steps: int) -> np.ndarray:
    """Returns exactly `steps` falling timesteps k (total // steps) + 1, or N-1 .. 0 if steps is total: float64 [steps].

    50 of 1000 give 981, 961 .. 1. This is diffusers' "leading" spacing with offset 1, and CompVis `make_ddim_timesteps`
    if `steps` divides `total`. It needs 1 <= steps <= total, as the functions below do.
    """
    return np.arange(steps)[::-1] * float(total // steps) + (steps < total)


def trailing_timesteps(total: int, steps: int) -> np.ndarray:
    """Returns round(N - k N / steps) - 1, falling from N-1: 50 of 1000 give 999, 979 .. 19.

    See Table 2 of arXiv 2305.08891.
    """
    return np.round(total - np.arange(steps) * (total / steps)) - 1.0


def linspace_timesteps(total: int, steps: int) -> np.ndarray:
    """Returns evenly spaced timesteps from N-1 to 0, both included, in general fractional; one step is N-1 alone. As
    k-diffusion `external.py` get_sigmas."""
    return np.linspace(total - 1.0, 0.0, steps)


def open_linspace_timesteps(total: int, steps: int) -> np.ndarray:
    """Returns evenly spaced timesteps from N-1 that stop one before 0, rounded to whole numbers. This is diffusers'
    "linspace" for DPM-Solver++ and UniPC.

    If steps is N, they stay fractional, because one of the rounded ones would come twice.
    """
    ts = np.linspace(0.0, total - 1.0, steps + 1)[:0:-1]
    return np.round(ts) if steps < total else ts


def karras_sigmas(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> np.ndarray:
    """Returns falling sigmas, evenly spaced in sigma^(1/rho), from the schedule's last to its first: Eq. 5 of arXiv
    2206.00364. float64 [steps]."""
    last, first = schedule.sigmas[-1] ** (1 / rho), schedule.sigmas[0] ** (1 / rho)
    return np.linspace(last, first, steps) ** rho


def t_to_sigma(schedule: NoiseSchedule, t: ArrayLike, xp: ModuleType = np) -> Any:
    """Returns sigma of a timestep, which may be fractional; log sigma is interpolated linearly, as in k-diffusion
    `external.py` DiscreteSchedule. `xp` is numpy or jax.numpy."""
    log_sigmas = xp.asarray(np.log(schedule.sigmas))
    return xp.exp(xp.interp(xp.asarray(t), xp.arange(schedule.timesteps), log_sigmas))


def sigma_to_t(schedule: NoiseSchedule, sigma: ArrayLike, xp: ModuleType = np) -> Any:
    """Returns the timestep of sigma, clamped to [0, N-1]: the inverse of `t_to_sigma`. With xp = jax.numpy it can be
    traced, and is float32 and within 2e-4 of the true t."""
    log_sigmas, log_sigma = xp.asarray(np.log(schedule.sigmas)), xp.log(xp.asarray(sigma))
    i = xp.sum(log_sigmas[1:-1] <= log_sigma[..., None], axis=-1)  # compares with all; jnp.interp searches in a loop
    low, high = log_sigmas[i], log_sigmas[i + 1]
    return xp.clip(i + (log_sigma - low) / (high - low), 0, schedule.timesteps - 1)


def exponential_sigmas(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns falling sigmas, evenly spaced in log sigma, from the schedule's last to its first: k-diffusion
    get_sigmas_exponential. float64 [steps]."""
    return np.exp(np.linspace(*np.log(schedule.sigmas[[-1, 0]]), steps))


def sgm_uniform_sigmas(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns the sigmas of evenly spaced timesteps from N-1 that stop one before 0, in general fractional: "SGM
    Uniform" of ComfyUI and of AUTOMATIC1111's web UI, after Stability's generative models. float64 [steps]."""
    return t_to_sigma(schedule, np.linspace(schedule.timesteps - 1.0, 0.0, steps + 1)[:-1])


def beta_sigmas(schedule: NoiseSchedule, steps: int, shape: float = 0.6) -> np.ndarray:
    """Returns falling sigmas, the schedule's range times quantiles of the distribution Beta(shape, shape): "Beta" of
    diffusers and of AUTOMATIC1111's web UI, after arXiv 2407.12173. float64 [steps].

    Most of them lie near both ends. (The paper and ComfyUI spread timesteps in that way, not sigmas.)
    """
    from scipy.special import betaincinv  # imported late: only this schedule needs it

    last, first = schedule.sigmas[-1], schedule.sigmas[0]
    return first + (last - first) * betaincinv(shape, shape, np.linspace(1.0, 0.0, steps))


class Levels(NamedTuple):
    """A way to choose the noise levels of a walk that is not a spacing of whole timesteps."""

    name: str
    sigmas: Callable[[NoiseSchedule, int], np.ndarray] | None  # sigmas(schedule, steps), falling; None: the timesteps'
    label: str  # its name in AUTOMATIC1111's web UI, which pictures' texts have
    infinite: bool = False  # may the first sigma be infinite (zero terminal SNR)? not if sigmas are interpolated


#: name -> Levels. A new one is a function of sigmas and an entry here; `Sampler.sigmas` says which samplers take it.
SIGMAS: Mapping[str, Levels] = MappingProxyType(
    {
        levels.name: levels
        for levels in (
            Levels("default", None, "Uniform", infinite=True),
            Levels("karras", karras_sigmas, "Karras"),
            Levels("exponential", exponential_sigmas, "Exponential"),
            Levels("sgm_uniform", sgm_uniform_sigmas, "SGM Uniform", infinite=True),
            Levels("beta", beta_sigmas, "Beta"),
        )
    }
)
