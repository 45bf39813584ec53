"""The DPM samplers that call the model twice a step, and DPM-Solver++(3M): the formulas of k-diffusion, as rows.

A step of two evaluations goes from y to a point y_2 at the level `mid`, the geometric mean of two sigmas, and then,
with the model's answer there, from y again. A row only knows what the row before it made of x. So the second row takes
that step back: y is a combination of y_2 and of the first row's D. The last step, to sigma 0, returns x0.
"""

import math
from itertools import pairwise

from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.rows import Grid, Row, ancestral_step, eps_row, x0_row


def dpm2_rows(grid: Grid, eta: float = 0.0) -> list[Row]:
    """DPM-Solver-2 in sigma: k-diffusion's sample_dpm_2; with eta 1 sample_dpm_2_ancestral. 2 steps - 1 rows.

    y_2 = y + (mid - sigma) eps, y' = y + (down - sigma) eps_2 + up noise, where mid = sqrt(sigma down) and (down, up)
    is the `ancestral_step`: (sigma', 0) for eta 0.
    """
    *steps, (last, _) = pairwise(grid.sigma)
    rows = []
    for sigma, then in steps:
        down, up = ancestral_step(sigma, then, eta)
        mid = math.sqrt(sigma * down)
        (alpha, _), (alpha_mid, _), (alpha_, _) = map(alpha_s, (sigma, mid, then))
        rows.append(eps_row(sigma, alpha_mid / alpha, (alpha_mid * (mid - sigma),)))
        b = (alpha_ * (down - sigma), alpha_ * (sigma - mid))
        rows.append(eps_row(mid, alpha_ / alpha_mid, b, push=False)._replace(c=alpha_ * up))
    return [*rows, x0_row(last, 0.0, (1.0,))]


def dpmpp_2s_rows(grid: Grid, eta: float) -> list[Row]:
    """DPM-Solver++(2S), Algorithm 1 of arXiv 2211.01095, ancestral: k-diffusion's sample_dpmpp_2s_ancestral.

    y_2 = (mid / sigma) y + (1 - mid / sigma) x0, y' = (down / sigma) y + (1 - down / sigma) x0_2 + up noise, with down,
    up and mid of `dpm2_rows`. For eta 0 it is deterministic. 2 steps - 1 rows.
    """
    *steps, (last, _) = pairwise(grid.sigma)
    rows = []
    for sigma, then in steps:
        down, up = ancestral_step(sigma, then, eta)
        mid = math.sqrt(sigma * down)
        (alpha, _), (alpha_mid, _), (alpha_, _) = map(alpha_s, (sigma, mid, then))
        gain, again = 1.0 - mid / sigma, down / mid
        rows.append(x0_row(sigma, alpha_mid * (mid / sigma) / alpha, (alpha_mid * gain,)))
        b = (alpha_ * (1.0 - down / sigma), -alpha_ * again * gain)
        rows.append(x0_row(mid, alpha_ * again / alpha_mid, b, alpha_ * up))
    return [*rows, x0_row(last, 0.0, (1.0,))]


def dpmpp_sde_rows(grid: Grid, eta: float) -> list[Row]:
    """DPM-Solver++ (stochastic): k-diffusion's sample_dpmpp_sde with r = 1/2. 2 steps - 1 rows.

    With mid = sqrt(sigma sigma'), both parts of a step start at y and end in an `ancestral_step` of their own:
    y_2 = (d_1 / sigma) y + (1 - d_1 / sigma) x0 + u_1 n_1 with (d_1, u_1) of sigma -> mid, and
    y' = (d / sigma) y + (1 - d / sigma) x0_2 + u n with (d, u) of sigma -> sigma'.

    n_1 and n are the normalised increments of one Brownian motion in sigma, from sigma to mid and from sigma to sigma'.
    So n = sqrt(k) n_1 + sqrt(1 - k) n_2, where n_2 is independent of n_1 and k = (sigma - mid) / (sigma - sigma').
    Each row draws its own noise, n_1 and n_2; the share of n_1 in y' comes with y_2, from which the second row starts:

        y' = f (y_2 - (1 - d_1 / sigma) D) + (1 - d / sigma) x0_2 + u sqrt(1 - k) n_2,    f = sqrt(k) u / u_1,

    which gives n_1 its weight. D = x0 + p y is chosen so that y has its own weight there, d / sigma. f does not depend
    on eta, and for eta 0 the sampler is deterministic.
    """
    *steps, (last, _) = pairwise(grid.sigma)
    rows = []
    for sigma, then in steps:
        r = math.sqrt(then / sigma)
        mid = sigma * r
        (alpha, _), (alpha_mid, _), (alpha_, _) = map(alpha_s, (sigma, mid, then))
        (down_mid, up_mid), (down, up) = ancestral_step(sigma, mid, eta), ancestral_step(sigma, then, eta)
        gain, kept = 1.0 - down_mid / sigma, down / sigma
        f = r * math.sqrt((1.0 + r * r) / (1.0 + r))
        p = (down_mid / sigma - kept / f) / gain
        rows.append(Row(sigma, p / alpha, 1.0, alpha_mid * kept / f / alpha, (alpha_mid * gain,), alpha_mid * up_mid))
        b = (alpha_ * (1.0 - kept), -alpha_ * f * gain)
        rows.append(x0_row(mid, alpha_ * f / alpha_mid, b, alpha_ * up * math.sqrt(r / (1.0 + r))))
    return [*rows, x0_row(last, 0.0, (1.0,))]


def dpmpp_3m_rows(grid: Grid, eta: float) -> list[Row]:
    """DPM-Solver++(3M) SDE: k-diffusion's sample_dpmpp_3m_sde; for eta 0 it is deterministic, DPM-Solver++(3M).

    With h = (1 + eta) log(sigma / sigma'), phi_2 = 1 - (1 - e^-h) / h and phi_3 = phi_2 / h - 1/2,
    y' = e^-h y + (1 - e^-h) x0 + phi_2 d_1 - phi_3 d_2 + c noise. d_1 and d_2 are divided differences of the latest
    three x0; d_1 is the first derivative of the parabola through them. The second step knows two x0, and has d_1 alone;
    the first and the last step have neither.

    Order 3 would need d_2 to be the second derivative. It is half of it, as in k-diffusion and diffusers, so the order
    is 2. c is that of `dpmpp_2m_rows`.
    """
    rows, lengths, end = [], [], len(grid.sigma) - 2  # lengths: of the steps before, in log sigma, newest first
    for n, (sigma, then) in enumerate(pairwise(grid.sigma)):
        (_, s), (alpha_, s_) = alpha_s(sigma), alpha_s(then)
        rho = then / sigma
        b = [1.0 - rho ** (1.0 + eta), 0.0, 0.0]
        step = -math.log(rho) if then else 0.0
        h = (1.0 + eta) * step
        if lengths and n != end:
            phi_2 = 1.0 + math.expm1(-h) / h
            r0 = lengths[0] / step
            d1, d2 = (1.0 / r0, -1.0 / r0, 0.0), (0.0, 0.0, 0.0)
            if len(lengths) > 1:
                r1 = lengths[1] / step
                older = (0.0, 1.0 / r1, -1.0 / r1)
                change = [(new - old) / (r0 + r1) for new, old in zip(d1, older, strict=True)]
                d1, d2 = [d + r0 * bend for d, bend in zip(d1, change, strict=True)], change
            phi_3 = phi_2 / h - 0.5
            b = [weight + phi_2 * first - phi_3 * second for weight, first, second in zip(b, d1, d2, strict=True)]
        a, c = rho**eta * s_ / s, s_ * math.sqrt(1.0 - rho ** (2.0 * eta))
        rows.append(x0_row(sigma, a, tuple(alpha_ * weight for weight in b), c))
        lengths = [step, *lengths][:2]
    return rows
