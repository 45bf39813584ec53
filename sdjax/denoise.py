"""One denoiser contract, (x, sigma) -> x0, and the conversions and wrappers that lead to it.

x is variance preserving, x = alpha x0 + s eps; sigma names the noise level and gives both weights:

    alpha = sqrt(abar) = 1 / sqrt(1 + sigma^2),      s = sqrt(1 - abar) = sigma alpha,      alpha^2 + s^2 = 1
    v = alpha eps - s x0   (arXiv 2202.00512, section 4)

sigma is a scalar or [B]. Predictors, (x, t) -> the UNet's raw output, are what guidance acts on (CompVis `ddim.py`);
`make_denoiser` turns one into a denoiser. Samplers see denoisers only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdjax.config import ScheduleConfig
from sdjax.errors import SdjaxError
from sdjax.schedule import make_schedule, sigma_to_t
from sdjax.types import Array, Cond

Denoiser = Callable[[Array, Array], Array]  # (x [B, h, w, C], sigma [] or [B]) -> x0 [B, h, w, C]
Predictor = Callable[[Array, Array], Array]  # (x [B, h, w, C], t [B]) -> eps or v [B, h, w, C]


def weights(sigma: Array, like: Array) -> tuple[Array, Array]:
    """(alpha, s) of sigma, shaped to multiply `like` [B, ...]."""
    sigma = jnp.asarray(sigma, jnp.float32)
    sigma = sigma.reshape(sigma.shape + (1,) * (like.ndim - 1)) if sigma.ndim else sigma
    alpha = jax.lax.rsqrt(1.0 + sigma * sigma)
    return alpha, sigma * alpha


def add_noise(x0: Array, eps: Array, sigma: Array) -> Array:
    """x = alpha x0 + s eps."""
    alpha, s = weights(sigma, x0)
    return alpha * x0 + s * eps


def eps_to_x0(x: Array, eps: Array, sigma: Array) -> Array:
    """x0 = (x - s eps) / alpha."""
    alpha, s = weights(sigma, x)
    return (x - s * eps) / alpha


def x0_to_eps(x: Array, x0: Array, sigma: Array) -> Array:
    """eps = (x - alpha x0) / s."""
    alpha, s = weights(sigma, x)
    return (x - alpha * x0) / s


def v_to_x0(x: Array, v: Array, sigma: Array) -> Array:
    """x0 = alpha x - s v."""
    alpha, s = weights(sigma, x)
    return alpha * x - s * v


def v_to_eps(x: Array, v: Array, sigma: Array) -> Array:
    """eps = s x + alpha v."""
    alpha, s = weights(sigma, x)
    return s * x + alpha * v


TO_X0 = {"epsilon": eps_to_x0, "v": v_to_x0}


def make_denoiser(config: ScheduleConfig, predict: Predictor) -> Denoiser:
    """Wraps raw outputs of kind `config.prediction`. SdjaxError on a kind that is not in TO_X0."""
    if config.prediction not in TO_X0:
        raise SdjaxError(f"prediction {config.prediction!r}: one of {', '.join(TO_X0)}")
    to_x0, schedule = TO_X0[config.prediction], make_schedule(config)

    def denoiser(x: Array, sigma: Array) -> Array:
        t = sigma_to_t(schedule, sigma, jnp)
        whole = jnp.round(t)  # float32 logarithms miss whole timesteps by 1e-4; models were trained on whole ones
        t = jnp.where(jnp.abs(t - whole) < 1e-3, whole, t)
        return to_x0(x, predict(x, jnp.broadcast_to(t, x.shape[:1])), sigma)

    return denoiser


def with_guidance(predict: Callable[[Array, Array, Cond], Array], uncond: Cond, cond: Cond, scale: Array) -> Predictor:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u), one call on the batch [uncond, cond].

    `scale` is traced, a scalar or [B, 1, 1, 1]; at 1 the result is c to the bit. Where cond holds composed prompts
    c_i, c is u + sum mix_i (c_i - u): Eq. 11 of composable diffusion (arXiv 2206.01714).
    """
    mix, conds = cond.mix, [cond]
    if mix is not None:
        conds = [cond._replace(context=cond.context[:, i], mix=None) for i in range(mix.shape[1])]
    everything = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), uncond, *conds)

    def guided(x: Array, t: Array) -> Array:
        out = predict(*(jnp.concatenate([a] * (1 + len(conds))) for a in (x, t)), everything)
        u, *cs = jnp.split(out, 1 + len(conds))
        c = cs[0] if mix is None else u + sum(mix[:, i, None, None, None] * (c - u) for i, c in enumerate(cs))
        return jnp.where(jnp.asarray(scale) == 1.0, c, u + scale * (c - u))

    return guided
