"""The forward process x = alpha x0 + s eps: alpha and s as functions of sigma = s / alpha.

Samplers are planned in numpy and float64, networks are called in jax.numpy and float32; both read the same row. In
y = x / alpha every deterministic sampler integrates dy/dsigma = eps, whatever alpha is: so a process is one function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.types import Array


class Process(NamedTuple):
    """A row of PROCESSES."""

    alpha: Callable[..., Any]  # (sigma, xp=numpy) -> alpha


def vp_alpha(sigma: Any, xp: Any = np) -> Any:
    """Variance preserving, alpha^2 + s^2 = 1: alpha = 1 / sqrt(1 + sigma^2)."""
    return 1.0 / np.sqrt(1.0 + sigma * sigma) if xp is np else jax.lax.rsqrt(1.0 + sigma * sigma)


VP = Process(vp_alpha)
PROCESSES = {"vp": VP}


def alpha_s(sigma: float, process: Process = VP) -> tuple[float, float]:
    """(alpha, s) of one noise level in float64, for planning."""
    alpha = float(process.alpha(float(sigma)))
    return alpha, float(sigma) * alpha


def alpha_s_like(sigma: Array, like: Array, process: Process = VP) -> tuple[Array, Array]:
    """(alpha, s) of sigma, a scalar or [B], in float32 and shaped to multiply `like` [B, ...]."""
    sigma = jnp.asarray(sigma, jnp.float32)
    sigma = sigma.reshape(sigma.shape + (1,) * (like.ndim - 1)) if sigma.ndim else sigma
    alpha = process.alpha(sigma, jnp)
    return alpha, sigma * alpha


def add_noise(x0: Array, eps: Array, sigma: Array) -> Array:
    """x = alpha x0 + s eps."""
    alpha, s = alpha_s_like(sigma, x0)
    return alpha * x0 + s * eps
