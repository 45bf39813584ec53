"""What tables of samplers are made of: Row and Grid, and rows and steps that several samplers share.

`sdjax.diffusion.sampler` says how a row updates x. The notation is that of `sdjax.diffusion.tables`.
"""

import math
from typing import NamedTuple

import numpy as np

from sdjax.diffusion.process import alpha_s

HISTORY = 4  # the number of D's that a row can use, its own included


class Row(NamedTuple):
    """One evaluation of the model and the update after it. In `Plan.rows` every field has a leading axis [R]."""

    sigma: float  # noise level that the denoiser is called with
    p: float  # D = p x + q x0
    q: float
    a: float  # x' = a x + sum_k b_k D_(n-k) + c noise
    b: tuple[float, ...]  # up to HISTORY weights, newest D first; [R, HISTORY] in a plan
    c: float = 0.0  # weight of fresh unit noise
    push: bool = True  # does D enter the history?
    live: bool = True  # False: padding, skipped


class Grid(NamedTuple):
    """The noise levels that a walk visits, float64."""

    t: np.ndarray  # [n] falling, may be fractional
    sigma: np.ndarray  # [n + 1]: sigma of each t, then the level at which the walk ends
    steps: int = 0  # of the whole walk, if a strength leaves some of them out; 0: these n are all


def x0_row(sigma: float, a: float, b: tuple[float, ...], c: float = 0.0) -> Row:
    """Returns a row whose D is x0."""
    return Row(sigma, 0.0, 1.0, a, b, c)


def eps_row(sigma: float, a: float, b: tuple[float, ...], push: bool = True) -> Row:
    """Returns a row whose D is eps = (x - alpha x0) / s."""
    alpha, s = alpha_s(sigma)
    return Row(sigma, 1.0 / s, -alpha / s, a, b, push=push)


def eps_step(sigma: float, then: float) -> tuple[float, float]:
    """Returns (a, h) of DDIM's step written with eps: x' = a x + h eps.

    It follows from y' = y + (sigma' - sigma) eps, multiplied by alpha'.
    """
    (alpha, _), (alpha_, _) = alpha_s(sigma), alpha_s(then)
    return alpha_ / alpha, alpha_ * (then - sigma)


def ancestral_step(sigma: float, then: float, eta: float) -> tuple[float, float]:
    """Returns (down, up) of k-diffusion's get_ancestral_step: a step goes to the level `down`, and noise of the level
    `up` brings it back to `then`.

    up = eta then sqrt(1 - rho^2) with rho = then / sigma, and down^2 + up^2 = then^2. It is exact for sigma near
    infinity, too.
    """
    rho = then / sigma
    return then * math.sqrt(1.0 - eta**2 + (eta * rho) ** 2), eta * then * math.sqrt(1.0 - rho**2)
