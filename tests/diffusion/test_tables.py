"""Every sampler's table in float64: what it integrates exactly, its order of convergence, k-diffusion's formulas."""

import numpy as np
import pytest
from scipy import stats

from sdjax.diffusion.plan import make_grid, plan
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.rows import HISTORY
from sdjax.diffusion.schedule import (
    SIGMAS,
    ScheduleConfig,
    karras_sigmas,
    linspace_timesteps,
    make_schedule,
    sigma_to_t,
    t_to_sigma,
)
from sdjax.diffusion.tables import ADAMS_BASHFORTH, lagrange_integrals, samplers
from tests.diffusion.k_diffusion import KDIFFUSION

SCHEDULE = make_schedule(ScheduleConfig())
NOISE = np.random.default_rng(0).normal(size=8)
FRESH = np.random.default_rng(1).normal(size=(2000, 8))
EVERY = [(name, sigmas) for name, sampler in samplers.items() for sigmas in sampler.sigmas]


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
    """x0 is reached whatever noise was added; `ddim`, `plms` and `deis` keep timestep 0's noise, as their peers do.

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


def gaussian_flow(x, start, end, mean=0.7, std=0.5):
    """Where the probability flow takes x from sigma `start` to `end`."""
    marginal = lambda alpha, s: (alpha * mean, np.hypot(alpha * std, s))
    (m, width), (m_, width_) = marginal(*alpha_s(start)), marginal(*alpha_s(end))
    return m_ + width_ * (x - m) / width


def order(name, counts, sigmas="karras", denoiser=gaussian_denoiser, **options):
    """Fitted slope of log error over log steps on sigmas that end at the same level whatever their number.

    Most samplers return the denoiser's x0 there. lms extrapolates to 0, and deis stays.
    """
    errors = []
    for steps in counts:
        grid, rows = table(name, steps, sigmas, **options)
        exact = gaussian_flow(NOISE, grid.sigma[0], grid.sigma[-1 if name == "lms" else -2])
        exact = exact if name == "deis" else gaussian_denoiser(exact, grid.sigma[-1 if name == "lms" else -2])
        errors.append(np.abs(walk(rows, denoiser, NOISE) - exact).max())
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
        ("dpmpp_sde", 0.0, 2),
        ("dpmpp_2s_a", 0.0, 2),
        ("dpmpp_3m_sde", 0.0, 2),
        ("dpm2", None, 2),
        ("dpm2_a", 0.0, 2),
        ("deis", None, 2),
    ],
)
def test_order_of_convergence(name, eta, claimed):
    """UniPC-2's corrector is worth one order. LMS is of order 4, less what its first three steps lose."""
    counts = [20, 40, 80] if name == "lms" else [80, 160, 320, 640]
    assert order(name, counts, eta=eta) == pytest.approx(claimed, abs=0.25)
    if name != "lms":
        assert order(name, counts, "exponential", eta=eta) == pytest.approx(claimed, abs=0.25)
    wrong = lambda x, sigma: gaussian_denoiser(x, sigma * 1.03)
    assert order(name, counts, eta=eta, denoiser=wrong) < claimed - 0.25, "a wrong level would be seen"


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m_sde"])
def test_what_a_step_of_dpm_solver_integrates(name):
    """y' - e^-h y is the integral of e^(t - h) x0(t): exact for lines, and 3M's third weight has half of a parabola's.

    That half is why its order is 2: twice as much would be exact.
    """
    grid, rows = table(name, 20, "karras", eta=0.0)
    t = -np.log(grid.sigma[:-1]) + np.log(grid.sigma[10])  # from the step's start on, 0 at its start
    h = t[11]
    row = rows[10]
    weights = np.asarray(row.b) / alpha_s(grid.sigma[11])[0]
    exact = [-np.expm1(-h), h + np.expm1(-h), h**2 - 2 * (h + np.expm1(-h))]  # of 1, t, t^2
    found = [np.dot(weights, t[10 - np.arange(len(weights))] ** k) for k in range(3)]
    assert found[0] == pytest.approx(exact[0], rel=1e-12)
    if name == "dpmpp_3m_sde":
        assert found[1:] == pytest.approx([exact[1], exact[2] / 2], rel=1e-9)


def test_identities():
    """One table under several names, and noise turned off."""
    for name, other in (("euler_a", "euler"), ("dpmpp_2m_sde", "dpmpp_2m"), ("dpm2_a", "dpm2")):
        for sigmas in SIGMAS:
            assert table(name, 20, sigmas, eta=0.0)[1] == table(other, 20, sigmas)[1]
    for sigmas in SIGMAS:  # without noise, DPM-Solver++'s two ways to write its step of two evaluations
        ends = [walk(table(name, 20, sigmas, eta=0.0)[1], toy_denoiser, NOISE) for name in ("dpmpp_sde", "dpmpp_2s_a")]
        np.testing.assert_allclose(*ends, rtol=1e-12)
        assert not any(row.c for name in ("dpmpp_sde", "dpmpp_2s_a") for row in table(name, 20, sigmas, eta=0.0)[1])
    assert table("euler_a", 20, spacing="leading")[1] == table("ddpm", 20)[1]
    assert table("ddim", 20, eta=1.0)[1][:-1] == table("ddpm", 20)[1][:-1], "all but the level that they end at"


def test_lagrange_integrals_on_even_nodes_are_adams_bashforth():
    for n, weights in enumerate(ADAMS_BASHFORTH):
        np.testing.assert_allclose(lagrange_integrals(-np.arange(n + 1.0), 0.0, 1.0), weights, rtol=1e-12)


def toy_denoiser(x, sigma):
    """x0 of an eps that is nonlinear in x and in t."""
    t, (alpha, s) = sigma_to_t(SCHEDULE, sigma), alpha_s(sigma)
    return (x - s * (np.tanh(0.7 * x + 0.1) + 0.2 * np.sin(x * (1 + t / 400)))) / alpha


def beta_levels(n, shape):
    return SCHEDULE.sigmas[0] + np.ptp(SCHEDULE.sigmas) * stats.beta.ppf(1 - np.linspace(0, 1, n), shape, shape)


#: k-diffusion's functions of noise levels, ComfyUI's and the web UI's sgm_uniform and the web UI's beta
LEVELS = {
    "karras": lambda n: karras_sigmas(SCHEDULE, n),
    "exponential": lambda n: np.exp(np.linspace(np.log(SCHEDULE.sigmas[-1]), np.log(SCHEDULE.sigmas[0]), n)),
    "sgm_uniform": lambda n: t_to_sigma(SCHEDULE, np.linspace(999, 0, n + 1)[:-1]),
    "beta": lambda n: beta_levels(n, 0.6),
}


def peer(name, falling, reference=None, **options):
    """(what k-diffusion's sampler makes of toy_denoiser, where ours starts) from these levels."""
    model = lambda y, sigma: toy_denoiser(y * alpha_s(sigma)[0], sigma)
    end = 0.0 if samplers[name].clean else SCHEDULE.sigmas[0]
    y = (reference or KDIFFUSION[name])(model, NOISE * falling[0], np.append(falling, end), FRESH, **options)
    return y * alpha_s(end)[0], NOISE * alpha_s(falling[0])[1]  # y = sigma_max noise


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("name", KDIFFUSION)
def test_k_diffusion(name, steps):
    """Its get_sigmas (timesteps even from 999 to 0) and all other sigmas; any t is fractional there as here."""
    levels = LEVELS
    if samplers[name].scaled:  # the others leave t = 0 out, as diffusers does
        levels = levels | {"default": lambda n: t_to_sigma(SCHEDULE, linspace_timesteps(1000, n))}
    for sigmas, falling in levels.items():
        expected, start = peer(name, falling(steps))
        found = walk(table(name, steps, sigmas)[1], toy_denoiser, start, FRESH)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in KDIFFUSION if samplers[name].eta is not None])
@pytest.mark.parametrize("eta", [0.4, 0.0])
def test_other_etas_are_k_diffusion_s_too(name, eta):
    for sigmas in ("karras", "beta"):
        expected, start = peer(name, LEVELS[sigmas](12), eta=eta)
        x = walk(table(name, 12, sigmas, eta=eta)[1], toy_denoiser, start, FRESH)
        np.testing.assert_allclose(x, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("dpm2", {"mean": lambda a, b: (a + b) / 2}),
        ("dpm2_a", {"middle_of_step": True}),
        ("dpm2_a", {"eta": 0.95}),
        ("dpmpp_2s_a", {"r": 0.6}),
        ("dpmpp_2s_a", {"eta": 0.95}),
        ("dpmpp_sde", {"noises": lambda fresh, i, *_: (fresh[2 * i], fresh[2 * i + 1])}),  # two independent noises
        ("dpmpp_sde", {"noises": lambda fresh, i, *_: (fresh[2 * i], fresh[2 * i])}),  # one for both
        ("dpmpp_sde", {"eta": 0.95}),
        ("dpmpp_3m_sde", {"half": -0.5}),  # diffusers' sign
        ("dpmpp_3m_sde", {"eta": 0.95}),
        ("deis", {"short": 0}),
        ("deis", {"log": lambda sigma: sigma}),  # lms of order 2
    ],
)
def test_a_mistake_would_be_seen(name, wrong):
    for sigmas in ("sgm_uniform", "karras"):
        expected, start = peer(name, LEVELS[sigmas](12), **wrong)
        x = walk(table(name, 12, sigmas)[1], toy_denoiser, start, FRESH)
        if (name, sigmas) != ("deis", "karras") or "short" not in wrong:  # whose last step goes nowhere
            assert np.abs(x - expected).max() > 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "sigmas, wrong",
    [
        ("exponential", lambda n: LEVELS["karras"](n)),
        ("exponential", lambda n: LEVELS["exponential"](n + 1)[:-1]),
        ("sgm_uniform", lambda n: t_to_sigma(SCHEDULE, np.linspace(999, 0, n))),
        ("sgm_uniform", lambda n: t_to_sigma(SCHEDULE, np.round(np.linspace(999, 0, n + 1)[:-1]))),
        ("beta", lambda n: t_to_sigma(SCHEDULE, 999 * stats.beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6))),
        (
            "beta",
            lambda n: beta_levels(n, 0.5),
        ),
    ],
)
def test_a_mistake_in_the_levels_would_be_seen(sigmas, wrong):
    for name in ("euler", "dpmpp_2s_a"):
        expected, start = peer(name, wrong(12))
        x = walk(table(name, 12, sigmas)[1], toy_denoiser, start, FRESH)
        assert np.abs(x - expected).max() > 1e-4 * np.abs(expected).max()


def test_the_noises_of_a_step_of_dpmpp_sde_are_of_one_brownian_motion():
    """Both rows' noise in y', by a denoiser of 0: its variance is up^2, and its share of the first row's is that of the
    increment from sigma to the middle."""
    grid, rows = table("dpmpp_sde", 7, "karras")
    zero = lambda x, sigma: 0.0 * x
    for n, (sigma, then) in enumerate(zip(grid.sigma[:-2], grid.sigma[1:-1], strict=True)):
        step, mid = rows[2 * n : 2 * n + 2], np.sqrt(sigma * then)
        first, second = (walk(step, zero, np.zeros(2), np.eye(2)) / alpha_s(then)[0]).tolist()
        up = then * np.sqrt(1 - (then / sigma) ** 2)
        assert first**2 + second**2 == pytest.approx(up**2, rel=1e-9)
        assert first / up == pytest.approx(np.sqrt((sigma - mid) / (sigma - then)), rel=1e-9)


def test_deis_lowers_its_order_by_the_steps_of_the_whole_walk():
    """The last step of less than 15 is of order 1. diffusers counts those that a strength leaves out, too."""
    orders = lambda *options, **more: [sum(b != 0 for b in row.b) for row in table("deis", *options, **more)[1]]
    assert orders(14) == [1, *[2] * 12, 1] and orders(15) == [1, *[2] * 14]
    for steps, last in ((20, 2), (14, 1)):
        rows = plan("deis", SCHEDULE, steps, strength=0.5).rows
        assert np.count_nonzero(rows.b[rows.live], axis=1).tolist() == [1, *[2] * (steps // 2 - 2), last]
