"""The forward process x = alpha x0 + s eps: alpha and s as functions of sigma = s / alpha.

Samplers are planned in numpy and float64, networks are called in jax.numpy and float32; both read the same row of
PROCESSES. In the variable y = x / alpha every deterministic sampler integrates dy/dsigma = eps, whatever alpha is.
Therefore one function, alpha of sigma, describes a process.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Process(NamedTuple):
    """A row of PROCESSES."""

    alpha: Callable[..., Any]  # (sigma, rsqrt) -> alpha; rsqrt(x) is 1 / sqrt(x), by default numpy's


def vp_alpha(sigma: Any, rsqrt: Callable[[Any], Any] = lambda x: 1.0 / np.sqrt(x)) -> Any:
    """Returns alpha of a variance preserving process, alpha^2 + s^2 = 1: alpha = 1 / sqrt(1 + sigma^2)."""
    return rsqrt(1.0 + sigma * sigma)


VP = Process(vp_alpha)

PROCESSES = {"vp": VP}


def alpha_s(sigma: float, process: Process = VP) -> tuple[float, float]:
    """Returns (alpha, s) of one noise level in float64, for planning."""
    alpha = float(process.alpha(float(sigma)))
    return alpha, float(sigma) * alpha
