"""Samplers as tables: each function here turns falling noise levels into rows of coefficients, in float64.

Notation. sigma -> sigma' is one step; alpha = 1 / sqrt(1 + sigma^2) and s = sigma alpha are the weights of x0 and eps
in x, which is variance preserving; k-diffusion's x is y = x / alpha, DPM-Solver's half log-SNR is lambda = -log sigma.
In y every deterministic sampler integrates dy/dsigma = (y - x0) / sigma = eps. The last sigma' is 0, and the last row
then returns the denoiser's x0 (DDIM, PLMS and DEIS stop at timestep 0's level, as CompVis and diffusers do).

The table shows which sampler of another project gives the same result from the same noise and model. Results agree to
2e-5 of the largest value for ddim, plms, euler, heun and dpm2, and to 1e-4 for the others. This holds for models of
eps, v and x0, with the same fresh noise injected. tests/parity/test_samplers.py and test_tasks.py compare with
diffusers, tests/diffusion/test_tables.py with k-diffusion's formulas, tests/parity/test_bundled.py with both.

| sampler      | timesteps, start        | diffusers scheduler and settings                  | k-diffusion, CompVis    |
|--------------|-------------------------|---------------------------------------------------|-------------------------|
| ddim         | leading + 1, 1          | DDIM, steps_offset 1, set_alpha_to_one False      | `ddim.py` (a)           |
| plms         | leading + 1, 1          | PNDM, skip_prk_steps, the same (e)                | `plms.py` (a)           |
| ddpm         | leading + 1, 1          | DDPM, fixed_small, no clip_sample                 |                         |
| euler        | linspace, s             | EulerDiscrete (b)                                 | sample_euler            |
| euler_a      | linspace, s             | EulerAncestralDiscrete (b)                        | sample_euler_ancestral  |
| heun         | linspace, s             | HeunDiscrete (b)                                  | sample_heun             |
| lms          | linspace, s             | LMSDiscrete (b)                                   | sample_lms              |
| dpmpp_2m     | open linspace, 1        | DPMSolverMultistep, midpoint (c)                  | sample_dpmpp_2m (d)     |
| dpmpp_2m_sde | open linspace, 1        | the same, sde-dpmsolver++ (c)                     | sample_dpmpp_2m_sde (d) |
| unipc        | open linspace, 1        | UniPCMultistep: order 2, bh2, corrector (c)       |                         |
| dpmpp_sde    | linspace, s             | DPMSolverSDE (b, f)                               | sample_dpmpp_sde (f)    |
| dpmpp_2s_a   | linspace, s             |                                                   | .._dpmpp_2s_ancestral   |
| dpmpp_3m_sde | open linspace, 1        | the same, of order 3, solver_type heun (c, g)     | sample_dpmpp_3m_sde (d) |
| dpm2         | linspace, s             | KDPM2Discrete (b)                                 | sample_dpm_2            |
| dpm2_a       | linspace, s             | KDPM2AncestralDiscrete (b)                        | sample_dpm_2_ancestral  |
| deis         | open linspace, 1        | DEISMultistep: order 2, logrho (c, h)             |                         |
| lcm          | every 20th, 1           | LCM, original_inference_steps 50, up to 50 steps  |                         |

The start is the weight of unit noise in the first x: s means y = sigma noise. With spacing "leading" it is always 1, as
diffusers' init_noise_sigma.

(a) Equal if steps divides 1000.
(b) Between whole timesteps diffusers interpolates sigma; k-diffusion and we interpolate log sigma. The results are
    2e-5 apart. diffusers' float32 levels take heun of an x0-model 2.6e-5 away from float64, ours 1e-6. Equal from 2
    steps on: a single step starts at t = 999, as in k-diffusion, but at t = 0 in diffusers.
(c) With other sigmas diffusers rounds the model's t, and we do not. Its "leading" divides by steps + 1, not by steps.
(d) Equal from the same levels. k-diffusion itself takes linspace's levels and starts at s.
(e) For a v-model PNDM averages the v's; we average the eps', as the paper does. Both are equal once PNDM is told that
    the prediction is epsilon and is given v_to_eps.
(f) From the same Brownian motion: see `dpmpp_sde_rows`, whose rows draw its increments to the middle of a step and on.
(g) Without lower_order_final. In the weight of the second difference diffusers has - 1/2 where k-diffusion has + 1/2,
    and diffusers itself has it without noise. Equal once this is mended.
(h) It ends at timestep 0's level. Other sigmas are there before the last step, which then goes nowhere, as in
    diffusers.

Noise is drawn by row. Samplers with two rows a step add it in the second (dpmpp_2s_a, dpm2_a) or in both (dpmpp_sde):
their peers' draws are those of these rows.

With a strength (img2img, inpainting) all samplers equal diffusers' except plms and lms. Cutting its list of timesteps
loses PNDM's repeated one, and LMS then takes weights of order 4 for a history that is still empty. Where inpainting
keeps a part, with a model not made for it, diffusers noises that to the level of a step's end in the middle of a step
of dpm2 and dpmpp_sde; we to the middle's.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.rows import HISTORY, Grid, Row, eps_row, eps_step, x0_row
from sdjax.diffusion.rows_dpm import dpm2_rows, dpmpp_2s_rows, dpmpp_3m_rows, dpmpp_sde_rows
from sdjax.diffusion.schedule import (
    SIGMAS,
    leading_timesteps,
    linspace_timesteps,
    open_linspace_timesteps,
    trailing_timesteps,
)


def ddim_rows(grid: Grid, eta: float) -> list[Row]:
    """DDIM, Eq. 12 and 16 of arXiv 2010.02502; eta 0 is deterministic, 1 is DDPM's variance.

    x' = alpha' x0 + sqrt(s'^2 - c^2) eps + c noise with c = eta (s' / s) sqrt(1 - alpha^2 / alpha'^2).
    On other grids the same table is other samplers. For eta 0 it is Euler's method (Algorithm 1 of arXiv 2206.00364
    without churn; sample_euler). For eta 1 it is Euler ancestral (c = alpha' sigma_up) and DDPM's posterior (Eq. 7 of
    arXiv 2006.11239).
    """
    rows = []
    for sigma, then in pairwise(grid.sigma):
        (alpha, s), (alpha_, s_) = alpha_s(sigma), alpha_s(then)
        c = eta * s_ / s * math.sqrt(1.0 - (alpha / alpha_) ** 2)
        a = math.sqrt(s_**2 - c**2) / s
        rows.append(x0_row(sigma, a, (alpha_ - a * alpha,), c))
    return rows


def improved_euler_rows(sigma: float, then: float) -> list[Row]:
    """Returns the two rows of one improved Euler step: x1 = DDIM(x, e), x' = DDIM(x, (e + e1) / 2). The second row only
    shifts x1 by h (e1 - e) / 2."""
    a, h = eps_step(sigma, then)
    return [eps_row(sigma, a, (h,)), eps_row(then, 1.0, (h / 2, -h / 2), push=False)]


def heun_rows(grid: Grid) -> list[Row]:
    """Heun's method, Algorithm 1 of arXiv 2206.00364 without churn: 2 steps - 1 rows. The last step is Euler's."""
    *steps, (last, _) = pairwise(grid.sigma)
    return [row for step in steps for row in improved_euler_rows(*step)] + [x0_row(last, 0.0, (1.0,))]


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms_rows(grid: Grid) -> list[Row]:
    """PLMS (arXiv 2202.09778) as in CompVis `plms.py`: DDIM's update with an Adams-Bashforth average of eps.

    The first step is a pseudo improved Euler step, whose second evaluation stays out of the history. That makes steps +
    1 rows. The weights are those of even steps on every grid.
    """
    first, *steps = pairwise(grid.sigma)
    rows = improved_euler_rows(*first)
    for n, (sigma, then) in enumerate(steps, 1):
        a, h = eps_step(sigma, then)
        rows.append(eps_row(sigma, a, tuple(h * w for w in ADAMS_BASHFORTH[min(n, HISTORY - 1)])))
    return rows


def lms_rows(grid: Grid) -> list[Row]:
    """Linear multistep, k-diffusion sample_lms: Adams-Bashforth of order up to 4 on uneven steps in sigma.

    y' = y + sum_k w_k eps_(n-k), where w_k is the integral from sigma to sigma' of the Lagrange polynomial of node n-k.
    Unlike other implementations, it lowers the order where weights of a thousand times the step would magnify rounding
    errors. That is the last step of more than 140 Karras sigmas, which lie close together next to the jump to 0.
    """
    rows = []
    for n, (sigma, then) in enumerate(pairwise(grid.sigma)):
        nodes = grid.sigma[max(n - HISTORY + 1, 0) : n + 1][::-1]
        weights = lagrange_integrals(nodes, sigma, then)
        while np.abs(weights).sum() > 1e3 * (sigma - then):
            nodes = nodes[:-1]
            weights = lagrange_integrals(nodes, sigma, then)
        rows.append(eps_row(sigma, eps_step(sigma, then)[0], tuple(alpha_s(then)[0] * weights)))
    return rows


def lagrange_integrals(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Returns the integrals from `start` to `end` of the Lagrange basis polynomials of `nodes`. It uses Gauss-Legendre
    quadrature with two points, which is exact for up to four nodes."""
    points = (start + end) / 2 + (end - start) / 2 * np.asarray([[-1.0], [1.0]]) / math.sqrt(3.0)
    others = [np.delete(nodes, k) for k in range(len(nodes))]
    basis = [np.prod((points - rest) / (node - rest), axis=1) for node, rest in zip(nodes, others, strict=True)]
    return (end - start) / 2 * np.sum(basis, axis=1)


def deis_rows(grid: Grid) -> list[Row]:
    """DEIS of order 2, log-rho: Eq. 15 of arXiv 2204.13902, with its polynomials in log sigma.

    y' = y + w_0 eps_n + w_1 eps_(n-1), where w_k is the integral from sigma to sigma' of the Lagrange polynomial of
    node n-k, as in `lms_rows`, but in log sigma. The first step is DDIM's; so is the last one of less than 15 steps.
    """
    rows, before = [], None
    lower = len(grid.t) - 1 if (grid.steps or len(grid.t)) < 15 else None
    for n, (sigma, then) in enumerate(pairwise(grid.sigma)):
        a, h = eps_step(sigma, then)
        old = 0.0
        if before is not None and n != lower:
            old = alpha_s(then)[0] * (then * (math.log(then / sigma) - 1.0) + sigma) / math.log(before / sigma)
        rows.append(eps_row(sigma, a, (h - old, old)))
        before = sigma
    return rows


def dpmpp_2m_rows(grid: Grid, eta: float = 0.0) -> list[Row]:
    """DPM-Solver++(2M), Algorithm 2 of arXiv 2211.01095, midpoint; with eta 1 its SDE version, SDE-DPM-Solver++(2M).

    x' = rho^eta s'/s x + alpha' (1 - rho^(1 + eta)) (x0 + (x0 - x0_(n-1)) h / (2 h_(n-1))) + c noise with
    c = s' sqrt(1 - rho^(2 eta)), rho = sigma' / sigma, h = -log rho. The first and the last step do without the
    difference x0 - x0_(n-1).
    """
    rows, before = [], None
    for sigma, then in pairwise(grid.sigma):
        rho = then / sigma
        alpha_, s_ = alpha_s(then)
        gain = alpha_ * (1.0 - rho ** (1.0 + eta))
        slope = math.log(rho) / math.log(sigma / before) / 2 if before and then else 0.0
        rows.append(
            x0_row(
                sigma,
                rho**eta * s_ / alpha_s(sigma)[1],
                (gain * (1.0 + slope), -gain * slope),
                s_ * math.sqrt(1.0 - rho ** (2.0 * eta)),
            )
        )
        before = sigma
    return rows


def unipc_rows(grid: Grid) -> list[Row]:
    """UniPC of order 2, B2(h) = e^h - 1, with corrector: Algorithms 5 to 8 of arXiv 2302.04867, on x0.

    Its predictor is DPM-Solver++(2M). Once x0_n is known, the corrector redoes the step that led to x_n. Both are
    linear in the same x and D's, so the correction only shifts x by sum_k shift_k x0_(n-k). One row corrects, then
    predicts.
    """
    rows, sigmas = dpmpp_2m_rows(grid), grid.sigma
    for n in range(1, len(rows) - 1):  # the first row has nothing to correct, the last drops x
        rho = sigmas[n] / sigmas[n - 1]
        h, gain = -math.log(rho), alpha_s(sigmas[n])[0] * (1.0 - rho)
        if n == 1:
            shift = (gain / 2, -gain / 2, 0.0)
        else:
            r = math.log(sigmas[n - 1] / sigmas[n - 2]) / h
            b1 = 1.0 / (1.0 - rho) - 1.0 / h  # solves w0 + w1 = b1, r w0 + w1 = b2: Eq. 8 of the paper
            b2 = (1.0 - 2.0 * (1.0 - (1.0 - rho) / h) / h) / (1.0 - rho)
            w0 = (b1 - b2) / (1.0 - r)
            w1, change = b1 - w0, (w0 - 0.5) / r  # the predictor had w0 = 1 / 2 and no w1
            shift = (gain * w1, -gain * (w1 + change), gain * change)
        b = (*rows[n].b, 0.0)
        rows[n] = rows[n]._replace(b=tuple(b[k] + rows[n].a * shift[k] for k in range(3)))
    return rows


LCM_STEPS, LCM_FIRST = 50, 19  # the distillation's timesteps: 50 of them, 19, 39 .. 999


def lcm_timesteps(total: int, steps: int) -> np.ndarray:
    """Returns `steps` of the 50 timesteps 999, 979 .. 19 that the model was distilled on. Above 50 steps it returns the
    trailing timesteps."""
    known = trailing_timesteps(total, max(steps, LCM_STEPS))
    return known[np.arange(steps) * len(known) // steps]


def lcm_rows(grid: Grid) -> list[Row]:
    """Multistep consistency sampling, Algorithm 3 of arXiv 2310.04378, for LCM-distilled models (LCM LoRA too).

    x' = alpha' f + s' noise, f = c_skip x + c_out x0 with c_skip = d^2 / (u^2 + d^2), c_out = u / sqrt(u^2 + d^2),
    u = 10 t, d = 0.5. A t below the first timestep of the distillation is raised to it, so that f is nearly x0 even at
    t = 0.
    """
    rows = []
    for t, (sigma, then) in zip(grid.t, pairwise(grid.sigma), strict=True):
        u, (alpha_, s_) = 10.0 * max(t, LCM_FIRST), alpha_s(then)
        skip, out = 0.25 / (u**2 + 0.25), u / math.sqrt(u**2 + 0.25)
        rows.append(x0_row(sigma, alpha_ * skip, (alpha_ * out,), s_))
    return rows


class Sampler(NamedTuple):
    """A sampler: the function that makes its rows, and the grids and options that it takes."""

    name: str
    rows: Callable[..., list[Row]]  # rows(grid), or rows(grid, eta) where eta is not None
    spacings: Mapping[str, Callable[[int, int], np.ndarray]]  # name -> timesteps(total, steps); the default first
    eta: float | None = None  # the default share of fresh noise, 0 .. 1; None: the sampler takes no eta
    clean: bool = True  # True: the walk ends at sigma 0; False: at timestep 0's sigma
    scaled: bool = False  # True: the first x is noise times s of the first level; False: unit noise
    sigmas: tuple[str, ...] = ("default",)  # those of SIGMAS that it takes
    infinite: bool = True  # may it start at an infinite sigma (zero terminal SNR)? not if it extrapolates eps
    label: str = ""  # its name in AUTOMATIC1111's web UI, which pictures' texts have; "": `name`

    @property
    def karras(self) -> bool:
        """Does it take sigmas="karras"?"""
        return "karras" in self.sigmas


WHOLE = {"leading": leading_timesteps, "trailing": trailing_timesteps, "linspace": linspace_timesteps}

EVEN = {"linspace": linspace_timesteps, "leading": leading_timesteps, "trailing": trailing_timesteps}

OPEN = EVEN | {"linspace": open_linspace_timesteps}

ANY = tuple(SIGMAS)

#: name -> Sampler. A new sampler is a new function of rows and an entry here.
samplers: Mapping[str, Sampler] = MappingProxyType(
    {
        sampler.name: sampler
        for sampler in (
            Sampler("ddim", ddim_rows, WHOLE, eta=0.0, clean=False, label="DDIM"),
            Sampler("plms", plms_rows, WHOLE, clean=False, infinite=False, label="PLMS"),
            Sampler("ddpm", ddim_rows, WHOLE, eta=1.0, label="DDPM"),
            Sampler("euler", partial(ddim_rows, eta=0.0), EVEN, scaled=True, sigmas=ANY, label="Euler"),
            Sampler("euler_a", ddim_rows, EVEN, eta=1.0, scaled=True, sigmas=ANY, label="Euler a"),
            Sampler("heun", heun_rows, EVEN, scaled=True, sigmas=ANY, infinite=False, label="Heun"),
            Sampler("lms", lms_rows, EVEN, scaled=True, sigmas=ANY, infinite=False, label="LMS"),
            Sampler("dpmpp_2m", dpmpp_2m_rows, OPEN, sigmas=ANY, label="DPM++ 2M"),
            Sampler("dpmpp_2m_sde", dpmpp_2m_rows, OPEN, eta=1.0, sigmas=ANY, label="DPM++ 2M SDE"),
            Sampler("unipc", unipc_rows, OPEN, sigmas=ANY, label="UniPC"),
            Sampler("dpmpp_sde", dpmpp_sde_rows, EVEN, eta=1.0, scaled=True, sigmas=ANY, label="DPM++ SDE"),
            Sampler("dpmpp_2s_a", dpmpp_2s_rows, EVEN, eta=1.0, scaled=True, sigmas=ANY, label="DPM++ 2S a"),
            Sampler("dpmpp_3m_sde", dpmpp_3m_rows, OPEN, eta=1.0, sigmas=ANY, label="DPM++ 3M SDE"),
            Sampler("dpm2", dpm2_rows, EVEN, scaled=True, sigmas=ANY, infinite=False, label="DPM2"),
            Sampler("dpm2_a", dpm2_rows, EVEN, eta=1.0, scaled=True, sigmas=ANY, infinite=False, label="DPM2 a"),
            Sampler("deis", deis_rows, OPEN, clean=False, sigmas=ANY, infinite=False, label="DEIS"),
            Sampler("lcm", lcm_rows, {"lcm": lcm_timesteps}, label="LCM"),
        )
    }
)
