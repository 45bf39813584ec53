"""The forward process: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, as float64 numpy tables.

abar_t is the running product of 1 - beta; sigma_t = sqrt((1 - abar_t) / abar_t) names the same noise level in
k-diffusion's variables, x / sqrt(abar) = x0 + sigma eps. Samplers are planned from these tables outside the trace.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from sdjax.config import ScheduleConfig


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables over t = 0 .. N-1, float64 [N]. Made by `make_schedule`."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray  # abar: 0.99915 down to 0.0046601 for Stable Diffusion
    sigmas: np.ndarray  # 0.029167 up to 14.614641

    @property
    def timesteps(self) -> int:
        return len(self.betas)


@cache
def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """betas = linspace(sqrt(start), sqrt(end), N)^2, CompVis `util.py` make_beta_schedule("linear")."""
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=np.float64) ** 2
    abar = np.cumprod(1.0 - betas)
    return NoiseSchedule(betas, abar, np.sqrt((1.0 - abar) / abar))


def leading_timesteps(total: int, steps: int) -> np.ndarray:
    """Exactly `steps` timesteps, falling: k (total // steps) + 1, at most total - 1. int64 [steps].

    50 of 1000 give 981, 961 .. 1. diffusers' "leading" spacing with offset 1; CompVis `make_ddim_timesteps` where
    `steps` divides `total`. Needs 1 <= steps <= total.
    """
    return np.minimum(np.arange(steps)[::-1] * (total // steps) + 1, total - 1)


def t_to_sigma(schedule: NoiseSchedule, t, xp=np):
    """Timestep (may be fractional) to sigma, linear in log sigma: k-diffusion `external.py` DiscreteSchedule."""
    log_sigmas = xp.asarray(np.log(schedule.sigmas))
    return xp.exp(xp.interp(xp.asarray(t), xp.arange(schedule.timesteps), log_sigmas))


def sigma_to_t(schedule: NoiseSchedule, sigma, xp=np):
    """The inverse, clamped to [0, N-1]. With xp = jax.numpy it is traceable, float32 and within 2e-4 of the true t."""
    log_sigmas = xp.asarray(np.log(schedule.sigmas))
    return xp.interp(xp.log(xp.asarray(sigma)), log_sigmas, xp.arange(schedule.timesteps, dtype=log_sigmas.dtype))
