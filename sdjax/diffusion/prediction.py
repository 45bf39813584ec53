"""What a network predicts: eps, v or x0. Each kind is one row: the conversion to x0, the training target, its weight.

x is variance preserving, x = alpha x0 + s eps, alpha^2 + s^2 = 1; v = alpha eps - s x0 (arXiv 2202.00512, section 4).
In the conversions x is [B, ...], and sigma is a scalar or [B].
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sdjax.diffusion.process import VP, Process
from sdjax.types import Array, Arrays

Like = Float[Arrays, "B *shape"]
Result = Float[Array, "B *shape"]
Sigma = Float[Arrays, "*B"] | float  # one for all of a batch, or one for each


def eps_to_x0(x: Like, eps: Like, sigma: Sigma) -> Result:
    """x0 = (x - s eps) / alpha."""
    alpha, s = alpha_s_like(sigma, x)
    return (x - s * eps) / alpha


def v_to_x0(x: Like, v: Like, sigma: Sigma) -> Result:
    """x0 = alpha x - s v."""
    alpha, s = alpha_s_like(sigma, x)
    return alpha * x - s * v


def v_to_eps(x: Like, v: Like, sigma: Sigma) -> Result:
    """eps = s x + alpha v."""
    alpha, s = alpha_s_like(sigma, x)
    return s * x + alpha * v


def x0_to_x0(x: Like, x0: Like, sigma: Sigma) -> Result:
    """Returns x0 as it is, for a network that predicts x0 itself."""
    return x0


class Prediction(NamedTuple):
    """One kind of prediction, for sampling and for training. A new kind is a new row of PREDICTIONS."""

    to_x0: Callable[[Array, Array, Array], Array]  # (x, the network's output, sigma) -> x0
    target: Callable[[Array, Array, Array, Array], Array]  # (x0, eps, alpha, s) -> the target of training
    weight: Callable[[Array], Array]  # SNR -> the divisor of min(SNR, gamma) in the loss (arXiv 2303.09556)
    diffusers: str  # its prediction_type in scheduler_config.json


PREDICTIONS: Mapping[str, Prediction] = MappingProxyType(
    {
        "epsilon": Prediction(eps_to_x0, lambda x0, eps, alpha, s: eps, lambda snr: snr, "epsilon"),
        "v": Prediction(v_to_x0, lambda x0, eps, alpha, s: alpha * eps - s * x0, lambda snr: snr + 1, "v_prediction"),
        "x0": Prediction(x0_to_x0, lambda x0, eps, alpha, s: x0, lambda snr: 1, "sample"),
    }
)


def alpha_s_like(sigma: Array, like: Array, process: Process = VP) -> tuple[Array, Array]:
    """Returns (alpha, s) of sigma, a scalar or [B], as float32 arrays shaped to multiply `like` [B, ...]."""
    sigma = jnp.asarray(sigma, jnp.float32)
    sigma = sigma.reshape(sigma.shape + (1,) * (like.ndim - 1)) if sigma.ndim else sigma
    alpha = process.alpha(sigma, jax.lax.rsqrt)
    return alpha, sigma * alpha


def add_noise(x0: Like, eps: Like, sigma: Sigma) -> Result:
    """Returns x = alpha x0 + s eps, for x0 and eps [B, ...] and sigma a scalar or [B]."""
    alpha, s = alpha_s_like(sigma, x0)
    return alpha * x0 + s * eps
