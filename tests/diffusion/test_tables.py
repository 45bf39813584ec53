"""Every sampler's table in float64: what it integrates exactly, its order of convergence, k-diffusion's formulas."""

import numpy as np
import pytest

from sdjax.diffusion.plan import make_grid
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.schedule import (
    ScheduleConfig,
    karras_sigmas,
    linspace_timesteps,
    make_schedule,
    sigma_to_t,
    t_to_sigma,
)
from sdjax.diffusion.tables import ADAMS_BASHFORTH, HISTORY, lagrange_integrals, samplers

SCHEDULE = make_schedule(ScheduleConfig())
NOISE = np.random.default_rng(0).normal(size=8)
FRESH = np.random.default_rng(1).normal(size=(2000, 8))
EVERY = [(name, sigmas) for name, sampler in samplers.items() for sigmas in ("default", "karras")[: 1 + sampler.karras]]


def table(name, steps, sigmas="default", spacing=None, eta=None):
    """(grid, rows) as `sdjax.diffusion.plan.plan` makes them, before they are rounded to float32."""
    sampler = samplers[name]
    grid = make_grid(sampler, SCHEDULE, steps, sigmas, spacing)
    eta = sampler.eta if eta is None else eta
    return grid, sampler.rows(grid) if eta is None else sampler.rows(grid, eta)


def walk(rows, denoiser, x, fresh=None):
    """`sdjax.diffusion.sampler.sample` in numpy."""
    history = []
    for n, row in enumerate(rows):
        ds = [row.p * x + row.q * denoiser(x, row.sigma), *history][:HISTORY]
        x = row.a * x + sum(b * d for b, d in zip(row.b, ds, strict=False)) + (row.c * fresh[n] if row.c else 0.0)
        history = ds if row.push else history
    return x


@pytest.mark.parametrize("name, sigmas", EVERY)
def test_rows_are_finite_and_a_perfect_denoiser_ends_at_x0(name, sigmas):
    """x0 is reached whatever noise was added; `ddim` and `plms` keep timestep 0's noise, as in CompVis.

    LCM's f is c_skip x + c_out x0: within 1e-5 of x0.
    """
    for steps in [*range(1, 34), 49, 50, 51, 128, 333, 499, 500, 501, 998, 999, 1000]:
        grid, rows = table(name, steps, sigmas)
        assert len(grid.t) == steps and rows[-1].c == 0
        for row in rows:
            assert np.isfinite([row.sigma, row.p, row.q, row.a, *row.b, row.c]).all()
            assert row.sigma > 0 and len(row.b) <= HISTORY, "the denoiser is never called at sigma 0"
        x = walk(rows, lambda x, sigma: 0.3, NOISE, FRESH)
        (alpha, s), (alpha_, s_) = alpha_s(grid.sigma[0]), alpha_s(grid.sigma[-1])
        expected = alpha_ * 0.3 + s_ * (NOISE - alpha * 0.3) / s
        np.testing.assert_allclose(x, expected, atol=1e-5 if name == "lcm" else 1e-9)


@pytest.mark.parametrize("name", samplers)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_spacing_is_finite(name, spacing):
    if spacing not in samplers[name].spacings:
        pytest.skip("refused: test_sampler.py")
    for steps in (1, 2, 3, 50, 999, 1000):
        grid, rows = table(name, steps, spacing=spacing)
        assert (np.diff(grid.sigma) <= 0).all()
        assert all(np.isfinite([row.sigma, row.p, row.q, row.a, *row.b, row.c]).all() for row in rows)


def gaussian_denoiser(x, sigma, mean=0.7, std=0.5):
    """E[x0 | x] when x0 is N(mean, std^2)."""
    alpha, s = alpha_s(sigma)
    return (alpha * std**2 * x + s**2 * mean) / (alpha**2 * std**2 + s**2)


def gaussian_end(x, start, end, mean=0.7, std=0.5):
    """Where the probability flow takes x from sigma `start` to `end`, and the denoiser from there (nowhere from 0)."""
    marginal = lambda alpha, s: (alpha * mean, np.hypot(alpha * std, s))
    (m, width), (m_, width_) = marginal(*alpha_s(start)), marginal(*alpha_s(end))
    return gaussian_denoiser(m_ + width_ * (x - m) / width, end)


def order(name, counts, **options):
    """Fitted slope of log error over log steps on Karras sigmas, which end at the same level whatever their number."""
    errors = []
    for steps in counts:
        grid, rows = table(name, steps, "karras", **options)
        exact = gaussian_end(NOISE, grid.sigma[0], grid.sigma[-1 if name == "lms" else -2])  # lms extrapolates to 0
        errors.append(np.abs(walk(rows, gaussian_denoiser, NOISE) - exact).max())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    "name, eta, claimed",
    [
        ("euler", None, 1),
        ("euler_a", 0.0, 1),
        ("heun", None, 2),
        ("dpmpp_2m", None, 2),
        ("dpmpp_2m_sde", 0.0, 2),
        ("unipc", None, 3),
        ("lms", None, 3.7),
    ],
)
def test_order_of_convergence(name, eta, claimed):
    """UniPC-2's corrector is worth one order. LMS is of order 4, less what its first three steps lose."""
    counts = [20, 40, 80] if name == "lms" else [80, 160, 320, 640]
    assert order(name, counts, eta=eta) == pytest.approx(claimed, abs=0.25)


def test_identities():
    """One table under four names, and noise turned off."""
    for name, eta, other in (("euler_a", 0.0, "euler"), ("dpmpp_2m_sde", 0.0, "dpmpp_2m")):
        for sigmas in ("default", "karras"):
            assert table(name, 20, sigmas, eta=eta)[1] == table(other, 20, sigmas)[1]
    assert table("euler_a", 20, spacing="leading")[1] == table("ddpm", 20)[1]
    assert table("ddim", 20, eta=1.0)[1][:-1] == table("ddpm", 20)[1][:-1], "all but the level that they end at"


def test_lagrange_integrals_on_even_nodes_are_adams_bashforth():
    for n, weights in enumerate(ADAMS_BASHFORTH):
        np.testing.assert_allclose(lagrange_integrals(-np.arange(n + 1.0), 0.0, 1.0), weights, rtol=1e-12)


# k-diffusion 0.1.1 `sampling.py`, its own variables y = x sqrt(1 + sigma^2), line by line


def to_d(y, sigma, denoised):
    return (y - denoised) / sigma


def sample_euler(model, y, sigmas, fresh):
    for i in range(len(sigmas) - 1):
        y = y + to_d(y, sigmas[i], model(y, sigmas[i])) * (sigmas[i + 1] - sigmas[i])
    return y


def sample_euler_ancestral(model, y, sigmas, fresh, eta=1.0):
    for i in range(len(sigmas) - 1):
        start, end = sigmas[i], sigmas[i + 1]
        up = min(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
        down = (end**2 - up**2) ** 0.5
        y = y + to_d(y, start, model(y, start)) * (down - start) + (fresh[i] * up if end > 0 else 0.0)
    return y


def sample_heun(model, y, sigmas, fresh):
    for i in range(len(sigmas) - 1):
        d, dt = to_d(y, sigmas[i], model(y, sigmas[i])), sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            y = y + d * dt
        else:
            y_2 = y + d * dt
            y = y + (d + to_d(y_2, sigmas[i + 1], model(y_2, sigmas[i + 1]))) / 2 * dt
    return y


def sample_lms(model, y, sigmas, fresh, order=4):
    ds = []
    for i in range(len(sigmas) - 1):
        ds = [*ds, to_d(y, sigmas[i], model(y, sigmas[i]))][-order:]
        total = 0.0
        for j, d in enumerate(reversed(ds)):
            others = [sigmas[i - k] for k in range(len(ds)) if k != j]
            basis = np.polynomial.Polynomial.fromroots(others) if others else np.polynomial.Polynomial([1.0])
            integral = basis.integ()
            total = total + d * (integral(sigmas[i + 1]) - integral(sigmas[i])) / basis(sigmas[i - j])
        y = y + total
    return y


def sample_dpmpp_2m(model, y, sigmas, fresh):
    old, t = None, lambda sigma: -np.log(sigma)
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        h = t(sigmas[i + 1]) - t(sigmas[i])
        d = denoised
        if old is not None:
            r = (t(sigmas[i]) - t(sigmas[i - 1])) / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        y, old = sigmas[i + 1] / sigmas[i] * y - np.expm1(-h) * d, denoised


def sample_dpmpp_2m_sde(model, y, sigmas, fresh, eta=1.0):
    old = h_last = None
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        h = np.log(sigmas[i]) - np.log(sigmas[i + 1])
        eta_h = eta * h
        y = sigmas[i + 1] / sigmas[i] * np.exp(-eta_h) * y - np.expm1(-h - eta_h) * denoised
        if old is not None:
            y = y - 0.5 * np.expm1(-h - eta_h) * (h / h_last) * (denoised - old)
        y = y + fresh[i] * sigmas[i + 1] * (-np.expm1(-2 * eta_h)) ** 0.5
        old, h_last = denoised, h


KDIFFUSION = {
    "euler": sample_euler,
    "euler_a": sample_euler_ancestral,
    "heun": sample_heun,
    "lms": sample_lms,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
}


def toy_denoiser(x, sigma):
    """x0 of an eps that is nonlinear in x and in t."""
    t, (alpha, s) = sigma_to_t(SCHEDULE, sigma), alpha_s(sigma)
    return (x - s * (np.tanh(0.7 * x + 0.1) + 0.2 * np.sin(x * (1 + t / 400)))) / alpha


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("name", KDIFFUSION)
def test_k_diffusion(name, steps):
    """Its get_sigmas (timesteps even from 999 to 0) and its Karras sigmas; any t is fractional there as here."""
    model = lambda y, sigma: toy_denoiser(y * alpha_s(sigma)[0], sigma)
    levels = {"karras": karras_sigmas(SCHEDULE, steps)}
    if samplers[name].scaled:  # the DPM-Solver++ family leaves t = 0 out, as diffusers does
        levels["default"] = t_to_sigma(SCHEDULE, linspace_timesteps(1000, steps))
    for sigmas, falling in levels.items():
        expected = KDIFFUSION[name](model, NOISE * falling[0], np.append(falling, 0.0), FRESH)
        start = NOISE * alpha_s(falling[0])[1]  # y = sigma_max noise
        np.testing.assert_allclose(walk(table(name, steps, sigmas)[1], toy_denoiser, start, FRESH), expected, rtol=1e-9)


def test_other_etas_are_k_diffusion_s_too():
    model = lambda y, sigma: toy_denoiser(y * alpha_s(sigma)[0], sigma)
    sigmas = karras_sigmas(SCHEDULE, 12)
    for name in ("euler_a", "dpmpp_2m_sde"):
        expected = KDIFFUSION[name](model, NOISE * sigmas[0], np.append(sigmas, 0.0), FRESH, eta=0.4)
        x = walk(table(name, 12, "karras", eta=0.4)[1], toy_denoiser, NOISE * alpha_s(sigmas[0])[1], FRESH)
        np.testing.assert_allclose(x, expected, rtol=1e-9)
