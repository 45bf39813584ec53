"""Samplers against closed forms, and against CompVis' formulas written out in float64 numpy."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.guidance import at_timesteps, to_denoiser
from sdjax.diffusion.plan import plan
from sdjax.diffusion.prediction import alpha_s_like
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.sampler import sample, start
from sdjax.diffusion.schedule import SIGMAS, ScheduleConfig, leading_timesteps, make_schedule
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIG = ScheduleConfig()
SCHEDULE = make_schedule(CONFIG)
ABAR = SCHEDULE.alphas_cumprod
NOISE = np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32)


@partial(jax.jit, static_argnames="denoiser")
def walk(table, noise, denoiser):
    fresh = lambda row: jax.random.normal(jax.random.fold_in(jax.random.key(5), row), noise.shape)
    return sample(table.rows, denoiser, start(table, noise), fresh).x


def run(name, steps, denoiser, noise=NOISE, **options):
    return np.asarray(walk(plan(name, SCHEDULE, steps, **options), noise, denoiser))


def toy_eps(x, t, xp=np):
    """Nonlinear in x and in t, of eps's size."""
    return 0.8 * xp.tanh(1.3 * x + 0.2) * (0.7 + 0.3 * xp.cos(t / 150.0)) + 0.1 * x


toy_denoiser = to_denoiser(CONFIG, at_timesteps(CONFIG, lambda x, t: toy_eps(x, t[:, None, None, None], jnp)))
X0 = np.random.default_rng(2).normal(size=NOISE.shape).astype(np.float32)


def perfect_denoiser(x, sigma):
    return jnp.asarray(X0)


EVERY = [(name, sigmas) for name, sampler in samplers.items() for sigmas in sampler.sigmas]

#: the number of evaluations of samplers that do not take one a step
EVALUATIONS = {"plms": lambda steps: steps + 1}
EVALUATIONS |= dict.fromkeys(("heun", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a"), lambda steps: 2 * steps - 1)


def evaluations(name, steps):
    return EVALUATIONS.get(name, int)(steps)


@pytest.mark.parametrize("name, sigmas", EVERY)
def test_perfect_denoiser_ends_at_x0(name, sigmas):
    """With the true x0 the implied eps never changes: it is left with the weight of the level where the walk ends.

    That is nothing, but for ddim and plms, and deis, sqrt(1 - abar_0), as in CompVis and in diffusers.
    """
    for steps in (1, 2, 3, 20, 50, 999, 1000):
        x = run(name, steps, perfect_denoiser, sigmas=sigmas)
        assert np.isfinite(x).all()
        alpha, s = alpha_s(plan(name, SCHEDULE, steps, sigmas=sigmas).levels[0])
        eps = (NOISE - alpha * X0) / s
        kept = np.sqrt(ABAR[0]) * X0 + np.sqrt(1 - ABAR[0]) * eps
        np.testing.assert_allclose(x, X0 if samplers[name].clean else kept, atol=2e-4)


@pytest.mark.parametrize("name", [name for name, sampler in samplers.items() if sampler.infinite])
def test_zero_terminal_snr_starts_in_pure_noise(name):
    """The walk starts at t = 999 by itself, where v is -x0 whatever x is, and ends at x0 like any other."""
    config = ScheduleConfig(prediction="v", zero_terminal_snr=True)
    schedule, seen = make_schedule(config), []
    for steps, sigmas in itertools.product((1, 2, 20, 1000), {"default", "sgm_uniform"} & {*samplers[name].sigmas}):
        table = plan(name, schedule, steps, sigmas=sigmas)
        seen.append(float(table.rows.sigma[0]))
        x = np.asarray(walk(table, NOISE, perfect_denoiser))
        last = schedule.alphas_cumprod[0]
        wanted = X0 if samplers[name].clean else np.sqrt(last) * X0 + np.sqrt(1 - last) * NOISE
        np.testing.assert_allclose(x, wanted, atol=1e-3)
    np.testing.assert_array_equal(seen, np.float32(schedule.sigmas[-1]))
    terminal = to_denoiser(config, at_timesteps(config, lambda x, t: -x0_at(t)))
    terminal = terminal(3 * NOISE, jnp.float32(schedule.sigmas[-1]))
    np.testing.assert_allclose(terminal, X0, atol=1e-5)
    with pytest.raises(SdjaxError, match="zero_terminal_snr needs 'v'"):
        at_timesteps(ScheduleConfig(zero_terminal_snr=True), toy_eps)
    with pytest.raises(SdjaxError, match="sampler 'heun': not for a model of zero terminal SNR"):
        plan("heun", schedule, 20)
    for sigmas in ("karras", "exponential", "beta"):
        with pytest.raises(SdjaxError, match=f"sigmas '{sigmas}': not for a model of zero terminal SNR"):
            plan("euler", schedule, 20, sigmas=sigmas)
    for name in ("dpm2", "dpm2_a", "deis"):
        with pytest.raises(SdjaxError, match=f"sampler '{name}': not for a model of zero terminal SNR"):
            plan(name, schedule, 20, sigmas="sgm_uniform")


def x0_at(t):
    """X0, if it is asked for at the last timestep."""
    return jnp.where(t[0] == 999, X0, jnp.nan)


def reference_ddim(eps, x, steps):
    """CompVis `ddim.py` p_sample_ddim, eta 0."""
    ts = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    alphas, alphas_prev = ABAR[ts], np.asarray([ABAR[0], *ABAR[ts[:-1]]])
    for i in reversed(range(steps)):
        e = eps(x, ts[i])
        pred_x0 = (x - np.sqrt(1 - alphas[i]) * e) / np.sqrt(alphas[i])
        x = np.sqrt(alphas_prev[i]) * pred_x0 + np.sqrt(1 - alphas_prev[i]) * e
    return x


def reference_plms(eps, x, steps):
    """CompVis `plms.py` p_sample_plms."""
    ts = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    alphas, alphas_prev = ABAR[ts], np.asarray([ABAR[0], *ABAR[ts[:-1]]])

    def x_prev(x, e, i):
        pred_x0 = (x - np.sqrt(1 - alphas[i]) * e) / np.sqrt(alphas[i])
        return np.sqrt(alphas_prev[i]) * pred_x0 + np.sqrt(1 - alphas_prev[i]) * e

    old = []
    for i in reversed(range(steps)):
        e = eps(x, ts[i])
        if len(old) == 0:
            average = (e + eps(x_prev(x, e, i), ts[max(i - 1, 0)])) / 2
        elif len(old) == 1:
            average = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            average = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            average = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x = x_prev(x, average, i)
        old = [*old, e][-3:]
    return x


@pytest.mark.parametrize("steps", [5, 10, 20, 25, 50])
@pytest.mark.parametrize("name, reference", [("ddim", reference_ddim), ("plms", reference_plms)])
def test_agrees_with_compvis(name, reference, steps):
    x = run(name, steps, toy_denoiser)
    wanted = reference(toy_eps, NOISE.astype(np.float64), steps)
    assert np.abs(x - wanted).max() / np.abs(wanted).max() < 2e-5


def gaussian_denoiser(x, sigma, mean=0.7, std=0.5):
    """E[x0 | x] when x0 is N(mean, std^2): in closed form."""
    alpha, s = alpha_s_like(sigma, x)
    return (alpha * std**2 * x + s**2 * mean) / (alpha**2 * std**2 + s**2)


def gaussian_flow(x, t, mean=0.7, std=0.5):
    """Where the probability flow takes x from timestep t to 0: standardised x is constant along it."""
    marginal = lambda t: (np.sqrt(ABAR[t]) * mean, np.sqrt(ABAR[t] * std**2 + 1 - ABAR[t]))
    (m, sd), (m0, sd0) = marginal(t), marginal(0)
    return m0 + sd0 * (x - m) / sd


def gaussian_error(name, steps):
    exact = gaussian_flow(NOISE.astype(np.float64), int(leading_timesteps(1000, steps)[0]))
    return np.abs(run(name, steps, gaussian_denoiser) - exact).mean()


def test_order_of_convergence():
    """DDIM's is 1. PLMS is far better at the same number of steps, and twice as many gain it more than double."""
    steps = [20, 40, 100, 200]
    slope = -np.polyfit(np.log(steps), np.log([gaussian_error("ddim", n) for n in steps]), 1)[0]
    assert slope == pytest.approx(1, abs=0.15)
    assert gaussian_error("plms", 20) < 0.2 * gaussian_error("ddim", 20)
    assert gaussian_error("plms", 50) < 0.4 * gaussian_error("plms", 25)


@pytest.mark.parametrize(
    "name, eta",
    [
        ("ddim", 0.5),
        ("ddim", 1.0),
        ("ddpm", None),
        ("euler_a", None),
        ("euler_a", 0.5),
        ("dpmpp_2m_sde", None),
        ("dpmpp_2m_sde", 0.5),
        ("dpmpp_sde", None),
        ("dpmpp_sde", 0.5),
        ("dpmpp_2s_a", None),
        ("dpmpp_2s_a", 0.5),
        ("dpmpp_3m_sde", None),
        ("dpmpp_3m_sde", 0.5),
        ("dpm2_a", None),
        ("dpm2_a", 0.5),
    ],
)
def test_eta_keeps_the_distribution(name, eta):
    noise = np.random.default_rng(3).normal(size=(16, 16, 16, 4)).astype(np.float32)
    x = run(name, 200, gaussian_denoiser, noise, eta=eta)
    assert x.mean() == pytest.approx(0.7, abs=0.02) and x.std() == pytest.approx(0.5, abs=0.02)
    still = run(name, 200, gaussian_denoiser, noise, eta=0.0)
    assert np.corrcoef(x.ravel(), still.ravel())[0, 1] < 0.9, "no noise was added"


@pytest.mark.parametrize("name", ["plms", "deis", "dpm2_a", "dpmpp_sde", "dpmpp_2s_a", "dpmpp_3m_sde"])
def test_slices_of_a_plan_walk_the_same_way(name):
    table = plan(name, SCHEDULE, 20)
    fresh = lambda row: jax.random.normal(jax.random.fold_in(jax.random.key(5), row), NOISE.shape)
    walk = jax.jit(lambda rows, state: sample(rows, toy_denoiser, state, fresh))
    state = start(table, NOISE)
    for n in range(evaluations(name, 20)):
        state = walk(jax.tree.map(lambda column, n=n: column[n : n + 1], table.rows), state)
    assert state.row == evaluations(name, 20)
    np.testing.assert_allclose(state.x, run(name, 20, toy_denoiser), atol=1e-5)


def test_a_trace_is_what_the_denoiser_saw_and_said():
    table = plan("heun", SCHEDULE, 4)
    end, trace = sample(table.rows, toy_denoiser, start(table, NOISE), jnp.zeros_like, keep=True)
    np.testing.assert_array_equal(end.x, sample(table.rows, toy_denoiser, start(table, NOISE), jnp.zeros_like).x)
    np.testing.assert_array_equal(trace.x[0], start(table, NOISE).x)
    for n in range(7):
        np.testing.assert_allclose(trace.x0[n], toy_denoiser(trace.x[n], table.rows.sigma[n]), atol=1e-5)
    np.testing.assert_array_equal(trace.x[7:], np.broadcast_to(end.x, trace.x[7:].shape))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", ["ddim", "unipc", "euler_a", "dpmpp_sde"])
def test_gradients_through_sampling(name, remat):
    """By central differences along a random direction, in the noise and in a parameter of the denoiser."""
    table = plan(name, SCHEDULE, 6)
    fresh = lambda row: jax.random.normal(jax.random.fold_in(jax.random.key(5), row), NOISE.shape)

    @jax.jit
    def loss(noise, scale):
        denoiser = lambda x, sigma: scale * jnp.tanh(gaussian_denoiser(x, sigma))
        return jnp.sum(jnp.sin(sample(table.rows, denoiser, start(table, noise), fresh, remat=remat).x))

    direction, h = np.random.default_rng(7).normal(size=NOISE.shape).astype(np.float32), 1e-2
    by_noise, by_scale = jax.grad(loss, (0, 1))(NOISE, 1.2)
    difference = (loss(NOISE + h * direction, 1.2) - loss(NOISE - h * direction, 1.2)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(by_noise, direction), difference, rtol=1e-2, atol=2e-3)
    np.testing.assert_allclose(by_scale, (loss(NOISE, 1.2 + h) - loss(NOISE, 1.2 - h)) / (2 * h), rtol=1e-2)


def test_remat_saves_memory():
    table, w = plan("ddim", SCHEDULE, 32), np.eye(4, 64, dtype=np.float32)

    def needed(remat):
        def loss(noise):
            def denoiser(x, sigma):
                for _ in range(4):
                    x = jnp.tanh(x @ w) @ w.T
                return x

            return jnp.sum(sample(table.rows, denoiser, start(table, noise), jnp.zeros_like, remat=remat).x)

        return jax.jit(jax.grad(loss)).lower(NOISE).compile().memory_analysis().temp_size_in_bytes

    assert needed(True) < 0.3 * needed(False)


def test_a_user_s_denoiser_is_all_that_is_needed():
    """The example of the file's docstring: points of a ring, drawn by the exact denoiser of its samples."""
    ring = jnp.stack([jnp.cos(jnp.arange(64) * jnp.pi / 32), jnp.sin(jnp.arange(64) * jnp.pi / 32)], -1)

    def denoiser(x, sigma):
        alpha, s = alpha_s_like(sigma, x)
        distance = jnp.sum((x[..., None, :] - alpha * ring) ** 2, -1)
        return jax.nn.softmax(-distance / (2 * s**2), -1) @ ring

    table = plan("dpmpp_2m", SCHEDULE, 20, sigmas="karras")
    x = sample(table.rows, denoiser, start(table, jax.random.normal(jax.random.key(0), (1, 8, 8, 2)))).x
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1, atol=0.01)
    with pytest.raises(SdjaxError, match="noise_fn None"):
        sample(plan("ddpm", SCHEDULE, 20).rows, denoiser, start(table, x))
    with pytest.raises(SdjaxError, match="noise_fn None"):
        sample(jax.tree.map(jnp.asarray, plan("ddpm", SCHEDULE, 20).rows), denoiser, start(table, x))
    walk = jax.jit(lambda rows: sample(rows, denoiser, start(table, x)).x)
    assert np.isnan(walk(plan("ddpm", SCHEDULE, 20).rows)).all(), (
        "no picture without its noise, even where it is traced"
    )
    np.testing.assert_allclose(jnp.linalg.norm(walk(table.rows), axis=-1), 1, atol=0.01)


@pytest.mark.parametrize("name, sigmas", EVERY)
def test_strength_walks_the_end_of_the_same_levels(name, sigmas):
    """And a perfect denoiser ends where it ends without: at x0, whatever is left of the noise of the start."""
    rows = plan(name, SCHEDULE, 20, sigmas=sigmas).rows
    for strength, steps in ((1.0, 20), (0.75, 15), (0.5, 10), (0.09, 1)):
        table = plan(name, SCHEDULE, 20, sigmas=sigmas, strength=strength)
        assert len(table.rows.live) == len(rows.live), "one compiled length"
        live = int(table.rows.live.sum())
        assert live == evaluations(name, steps)
        if name != "plms":
            np.testing.assert_array_equal(table.rows.sigma[:live], rows.sigma[rows.live][-live:])
        np.testing.assert_allclose((table.signal, table.start), alpha_s(table.rows.sigma[0]), rtol=1e-6)
        x = sample(table.rows, perfect_denoiser, start(table, NOISE, X0), lambda row: NOISE).x
        end = X0 if samplers[name].clean else np.sqrt(ABAR[0]) * X0 + np.sqrt(1 - ABAR[0]) * NOISE
        np.testing.assert_allclose(x, end, atol=2e-4)


@pytest.mark.parametrize(
    "strength, message",
    [
        (0.0, "strength 0.0: a number above 0"),
        (1.1, "up to 1"),
        (-0.5, "above 0"),
        (float("nan"), "above 0"),
        ("0.5", "a number"),
        (True, "a number"),
        (0.04, "no step of 20 is left"),
    ],
)
def test_strengths_that_are_refused(strength, message):
    with pytest.raises(SdjaxError, match=message):
        plan("ddim", SCHEDULE, 20, strength=strength)


def test_only_the_padded_length_recompiles():
    @jax.jit
    def walk(table, noise, scale):
        denoiser = lambda x, sigma: scale * gaussian_denoiser(x, sigma)
        return sample(table.rows, denoiser, start(table, noise), lambda row: noise * row).x

    for name, steps, eta, scale in (("ddim", 33, 0.0, 1.0), ("ddim", 60, 1.0, 0.9), ("plms", 50, 0.0, 1.0)):
        walk(plan(name, SCHEDULE, steps, eta), NOISE, scale)
    for name, sigmas in EVERY:
        walk(plan(name, SCHEDULE, 40, sigmas=sigmas), NOISE, 1.0)
    assert walk._cache_size() == 1
    walk(plan("ddim", SCHEDULE, 65), NOISE, 1.0)
    assert walk._cache_size() == 2


def test_plan_counts_evaluations():
    for name in samplers:
        for steps in (1, 16, 30, 1000):
            assert plan(name, SCHEDULE, steps).rows.live.sum() == evaluations(name, steps)
    sigmas = plan("plms", SCHEDULE, 50).rows.sigma[:4]
    np.testing.assert_allclose(sigmas, SCHEDULE.sigmas[[981, 961, 961, 941]], rtol=1e-6)


def test_start():
    """k-diffusion's y = sigma_max noise, or unit noise: diffusers' init_noise_sigma as a weight in x."""
    s_max = np.sqrt(1 - ABAR[999])
    scaled = ("euler", "euler_a", "heun", "lms", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a")
    for name in scaled:
        for options in ({}, {"spacing": "trailing"}, *({"sigmas": sigmas} for sigmas in SIGMAS)):
            assert plan(name, SCHEDULE, 20, **options).start == pytest.approx(s_max, rel=1e-6)
        assert plan(name, SCHEDULE, 20, spacing="leading").start == 1
    assert all(plan(name, SCHEDULE, 20).start == 1 for name in samplers if name not in scaled)


@pytest.mark.parametrize(
    "name, steps, options, message",
    [
        ("dimm", 20, {}, "ddim, plms"),
        ("ddim", 0, {}, "1 to 1000"),
        ("ddim", 1001, {}, "1 to 1000"),
        ("ddim", -1, {}, "1 to 1000"),
        ("ddim", 2.5, {}, "1 to 1000"),
        ("ddim", True, {}, "1 to 1000"),
        ("plms", 20, {"eta": 0.5}, "must be 0"),
        ("lcm", 4, {"eta": 1.0}, "ddim, ddpm, euler_a, dpmpp_2m_sde, dpmpp_sde, dpmpp_2s_a, dpmpp_3m_sde, dpm2_a"),
        ("deis", 20, {"eta": 0.5}, "sampler deis takes none"),
        ("ddim", 20, {"eta": 1.5}, "from 0 to 1"),
        ("ddim", 20, {"eta": float("nan")}, "from 0 to 1"),
        ("euler_a", 20, {"eta": "1"}, "from 0 to 1"),
        ("euler", 20, {"sigmas": "Karras"}, "one of default, karras, exponential, sgm_uniform, beta"),
        ("ddim", 20, {"sigmas": "karras"}, "not for sampler ddim, it must be 'default'"),
        ("plms", 20, {"sigmas": "karras"}, "euler, euler_a, heun"),
        ("ddpm", 20, {"sigmas": "karras"}, "unipc"),
        ("lcm", 4, {"sigmas": "karras"}, "lcm"),
        ("euler", 20, {"spacing": "even"}, "one of linspace, leading, trailing"),
        ("lcm", 4, {"spacing": "leading"}, "one of lcm"),
        ("euler", 20, {"spacing": "leading", "sigmas": "karras"}, "none with karras"),
        ("ddim", 20, {"sigmas": "beta"}, "it must be 'default' .beta is for euler, euler_a, heun, lms, dpmpp_2m"),
        ("lcm", 20, {"sigmas": "sgm_uniform"}, "dpmpp_3m_sde, dpm2, dpm2_a, deis"),
        ("deis", 20, {"spacing": "leading", "sigmas": "exponential"}, "none with exponential"),
    ],
)
def test_refusals(name, steps, options, message):
    with pytest.raises(SdjaxError, match=message) as error:
        plan(name, SCHEDULE, steps, **options)
    assert "\n" not in str(error.value)


def test_samplers_is_a_mapping_by_name():
    assert all(sampler.name == name for name, sampler in samplers.items())
