"""Samplers against diffusers' schedulers, from the same noise and the same nonlinear model.

The table at the top of sdjax/diffusion/tables.py says with which settings a peer is exact; these tests are its proof.
"""

import importlib.util
import sys
from functools import cache
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from sdjax.diffusion import plan, sampler, tables  # noqa: E402
from sdjax.diffusion.guidance import at_timesteps, to_denoiser  # noqa: E402
from sdjax.diffusion.plan import make_grid  # noqa: E402
from sdjax.diffusion.process import alpha_s  # noqa: E402
from sdjax.diffusion.schedule import (  # noqa: E402
    ScheduleConfig,
    make_schedule,
    sigma_to_t,
)

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]

NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 4))
FRESH = np.random.default_rng(1).standard_normal((1000, *NOISE.shape)).astype(np.float32)  # row by row
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"steps_offset": 1, "timestep_spacing": "leading"}
DDIM = LEADING | {"set_alpha_to_one": False}
THIRD = {"solver_order": 3, "solver_type": "heun", "lower_order_final": False}

DIFFUSERS = {  # sampler -> scheduler, settings, limit
    "ddim": ("DDIMScheduler", DDIM | {"clip_sample": False}, 2e-5),
    "plms": ("PNDMScheduler", DDIM | {"skip_prk_steps": True}, 2e-5),
    "ddpm": ("DDPMScheduler", LEADING | {"clip_sample": False}, 1e-4),
    "euler": ("EulerDiscreteScheduler", {}, 2e-5),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, 1e-4),
    "heun": ("HeunDiscreteScheduler", {}, 2e-5),
    "lms": ("LMSDiscreteScheduler", {}, 1e-4),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, 1e-4),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 1e-4),
    "unipc": ("UniPCMultistepScheduler", {}, 1e-4),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}, 1e-4),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", THIRD | {"algorithm_type": "sde-dpmsolver++"}, 1e-4),
    "dpm2": ("KDPM2DiscreteScheduler", {}, 2e-5),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}, 1e-4),
    "deis": ("DEISMultistepScheduler", {}, 1e-4),
    "lcm": ("LCMScheduler", {}, 1e-4),
}


def model(x, t, xp):
    """Bounded, nonlinear in x and t."""
    return xp.tanh(0.7 * x + 0.1) + 0.2 * xp.sin(x * (1 + t / 400))


@cache
def walk(prediction: str, zero_terminal_snr: bool = False):
    """Compiled once a padded length, whatever the sampler."""
    config = ScheduleConfig(prediction=prediction, zero_terminal_snr=zero_terminal_snr)
    denoiser = to_denoiser(config, at_timesteps(config, lambda x, t: model(x, t[:, None, None, None], jnp)))
    return jax.jit(
        lambda plan: sampler.sample(plan.rows, denoiser, sampler.start(plan, NOISE), jnp.asarray(FRESH).__getitem__).x
    )


def ours(name: str, prediction: str, steps: int, **options) -> np.ndarray:
    return np.asarray(walk(prediction)(plan.plan(name, make_schedule(ScheduleConfig()), steps, **options)))


def scheduler_class(name: str):
    """diffusers' scheduler of this name. Of torchsde, which its SDE scheduler imports, only the noise is used."""
    if name == "DPMSolverSDEScheduler":
        if "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None:
            sys.modules["torchsde"] = ModuleType("torchsde")
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    return getattr(diffusers, name)


def make(name: str, prediction: str = "epsilon", mended: bool = True, **settings):
    scheduler, defaults, _ = DIFFUSERS[name]
    settings = BETAS | {"prediction_type": PREDICTION[prediction]} | defaults | settings
    made = scheduler_class(scheduler)(**settings)
    if mended and name == "dpmpp_3m_sde":
        mend(made)
    return made


def mend(scheduler) -> None:
    """Gives the second difference the weight of k-diffusion, which is 1 more: + 1/2 where diffusers has - 1/2."""
    step = scheduler.multistep_dpm_solver_third_order_update

    def mended(outputs, sample, noise):
        n = scheduler.step_index
        end, *sigmas = scheduler.sigmas[[n + 1, n, n - 1, n - 2]].double()
        a, b, c = (-(sigma / end).log() for sigma in sigmas)  # in log SNR, from the step's end
        m0, m1, m2 = reversed(outputs[-3:])
        second = ((m0 - m1) / (a - b) - (m1 - m2) / (b - c)) * a * a / (a - c)
        return step(outputs, sample=sample, noise=noise) + (second / (1 + end**2).sqrt()).to(sample.dtype)

    scheduler.multistep_dpm_solver_third_order_update = mended


def peers_draws(name: str, draws):
    """The draws of the peer's rows: those that add noise once a step of two rows add it in the second."""
    return iter(list(draws)[1::2]) if name == "KDPM2AncestralDiscreteScheduler" else iter(draws)


def follow_noise(scheduler, draw, monkeypatch) -> None:
    """Has a scheduler draw its noise by draw(), also where it asks for increments of a Brownian motion."""
    module = type(scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: draw(), raising=False)
    if hasattr(sys.modules[module], "BrownianTreeNoiseSampler"):
        monkeypatch.setattr(f"{module}.BrownianTreeNoiseSampler", lambda *_: Increments(draw))


class Increments:
    """The normalised increments of a Brownian motion in sigma, from independent ones.

    Asked for two that begin together, it continues the first to the end of the second.
    """

    def __init__(self, draw):
        self.draw, self.last = draw, (None, None, 0.0)

    def __call__(self, start, end):
        begin, middle, walked = self.last
        if begin != start:
            middle, walked = start, 0.0
        self.last = start, end, walked + (middle - end) ** 0.5 * self.draw()
        return self.last[2] / (start - end) ** 0.5


def theirs(scheduler, steps: int, monkeypatch) -> np.ndarray:
    """diffusers' pipeline loop, drawing its noise from FRESH.

    Some round the t of sigmas that are not of timesteps: here they get the unrounded ones of the same sigmas.
    """
    draws = peers_draws(type(scheduler).__name__, FRESH)
    follow_noise(scheduler, lambda: torch.tensor(next(draws)), monkeypatch)
    scheduler.set_timesteps(steps)
    ts = scheduler.timesteps
    if any(scheduler.config.get(f"use_{sigmas}_sigmas") for sigmas in ("karras", "exponential", "beta")):
        sigmas = scheduler.sigmas[:-1].double().numpy()
        exact = sigma_to_t(make_schedule(ScheduleConfig()), sigmas[: len(ts)])
        if not ts.is_floating_point():
            ts = torch.tensor(exact)
        elif "KDPM2" in type(scheduler).__name__:  # it rounds the first of a step's two
            ts = torch.where(torch.arange(len(ts)) % 2 == 0, torch.tensor(exact), ts)
        scheduler.set_begin_index(0)
    x = torch.tensor(NOISE) * scheduler.init_noise_sigma
    for t in ts:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t, torch), t, x).prev_sample
    return x.numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", [name for name in DIFFUSERS if name != "plms"])
def test_defaults(name, prediction, monkeypatch):
    """DDIM: diffusers subtracts 1000 // steps from t, which is the next t where steps divides 1000.

    Euler, Heun and LMS: diffusers interpolates sigma between whole timesteps, k-diffusion and ours log sigma. There is
    no difference where steps - 1 divides 999 (4, 10, 28, 38); at 20 and 50 it is 2e-5 for euler_a, 1e-6 for the others.
    """
    counts = {"ddim": (5, 10, 20, 25, 50), "ddpm": (5, 10, 20, 30, 50, 333), "lcm": (1, 2, 4, 7, 8, 50)}
    counts |= dict.fromkeys(("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "deis"), (1, 2, 5, 14, 20, 30, 99))
    for steps in counts.get(name, (4, 10, 20, 28, 38, 50)):
        found = ours(name, prediction, steps)
        assert relative(found, theirs(make(name, prediction), steps, monkeypatch)) < DIFFUSERS[name][2], steps


def fed_with_eps(scheduler):
    """A scheduler of eps with a model of v. Left to itself PNDM averages the v's, PLMS (arXiv 2202.09778) the eps'."""
    abar, step = scheduler.alphas_cumprod.double(), scheduler.step
    scheduler.step = lambda v, t, x, **options: step(abar[t].sqrt() * v + (1 - abar[t]).sqrt() * x, t, x, **options)
    return scheduler


@pytest.mark.parametrize("steps", [5, 10, 20, 25, 50])
def test_plms(steps, monkeypatch):
    assert relative(ours("plms", "epsilon", steps), theirs(make("plms"), steps, monkeypatch)) < 2e-5
    assert relative(ours("plms", "v", steps), theirs(fed_with_eps(make("plms")), steps, monkeypatch)) < 2e-5
    averaged = theirs(make("plms", "v"), steps, monkeypatch)
    assert relative(ours("plms", "v", steps), averaged) > 1e-4, "diffusers averages eps now: say so in tables.py"


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "unipc", "dpmpp_3m_sde", "deis", "lcm"])
def test_a_model_of_x0(name, monkeypatch):
    """diffusers' prediction_type "sample".

    Heun gets its levels in float64: with diffusers' own float32 ones, 1.3e-5 off, it ends 2.6e-5 from a computation in
    float64, from which ours is 1e-6 away.
    """
    scheduler = make(name, "x0")
    if name == "heun":
        levels = make_grid(tables.samplers[name], make_schedule(ScheduleConfig()), 10, "default", None).sigma
        twice = torch.tensor([levels[0], *np.repeat(levels[1:-1], 2), levels[-1]])
        whole = scheduler.set_timesteps
        monkeypatch.setattr(scheduler, "set_timesteps", lambda n: (whole(n), setattr(scheduler, "sigmas", twice)))
    expected = theirs(scheduler, 10, monkeypatch)
    assert relative(ours(name, "x0", 10), expected) < DIFFUSERS[name][2]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", [name for name in DIFFUSERS if tables.samplers[name].karras and name != "euler_a"])
def test_sigmas(name, sigmas, prediction, monkeypatch):
    """diffusers has no ancestral Euler with these, and no sgm_uniform: see tests/diffusion/test_tables.py."""
    for steps in (3, 5, 20, 33):
        expected = theirs(make(name, prediction, **{f"use_{sigmas}_sigmas": True}), steps, monkeypatch)
        assert relative(ours(name, prediction, steps, sigmas=sigmas), expected) < DIFFUSERS[name][2], steps


@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
def test_other_sigmas_would_be_seen(sigmas, monkeypatch):
    for other in {"karras", "exponential", "beta"} - {sigmas}:
        expected = theirs(make("dpm2", **{f"use_{other}_sigmas": True}), 20, monkeypatch)
        assert relative(ours("dpm2", "epsilon", 20, sigmas=sigmas), expected) > 1e-3


@pytest.mark.parametrize("name", [name for name in DIFFUSERS if name not in ("plms", "lcm")])
def test_trailing(name, monkeypatch):
    for steps in (5, 20, 50):
        expected = theirs(make(name, timestep_spacing="trailing"), steps, monkeypatch)
        assert relative(ours(name, "epsilon", steps, spacing="trailing"), expected) < DIFFUSERS[name][2], steps


@pytest.mark.parametrize("name, limit", [("ddim", 2e-5), ("ddpm", 1e-4), ("euler", 1e-3), ("euler_a", 1e-3)])
def test_zero_terminal_snr(name, limit, monkeypatch):
    """Trailing without being asked. All but DDIM and DDPM end at abar = 2^-24 in diffusers, sigma 4096: 3e-4 apart.

    (Multistep samplers weigh by the length of the first step in log sigma, and differ more.)
    """
    config = ScheduleConfig(prediction="v", zero_terminal_snr=True)
    schedule = make_schedule(config)
    for steps in (5, 20, 50):
        scheduler = make(name, "v", timestep_spacing="trailing", rescale_betas_zero_snr=True)
        expected = theirs(scheduler, steps, monkeypatch)
        found = np.asarray(walk("v", True)(plan.plan(name, schedule, steps)))
        assert relative(found, expected) < limit, steps
        abar = scheduler.alphas_cumprod.numpy()
        np.testing.assert_allclose(schedule.alphas_cumprod[:-1], abar[:-1], rtol=2e-3, atol=1e-7)
    plain = theirs(make(name, "v", timestep_spacing="trailing"), 20, monkeypatch)
    found = np.asarray(walk("v", True)(plan.plan(name, schedule, 20)))
    assert relative(found, plain) > 10 * limit, "the schedules cannot be told apart"


@pytest.mark.parametrize("name", ["euler", "euler_a", "heun", "lms", "dpmpp_sde", "dpm2", "dpm2_a"])
def test_leading(name, monkeypatch):
    """Whole timesteps, start 1. (DPM-Solver++, UniPC and DEIS divide by steps + 1 in diffusers, by steps here.)"""
    for steps in (5, 20, 30, 50):
        expected = theirs(make(name, **LEADING), steps, monkeypatch)
        assert relative(ours(name, "epsilon", steps, spacing="leading"), expected) < DIFFUSERS[name][2], steps


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_eta(eta, monkeypatch):
    scheduler = make("ddim")
    scheduler.step = lambda *args, step=scheduler.step: step(*args, eta=eta)
    assert relative(ours("ddim", "epsilon", 20, eta=eta), theirs(scheduler, 20, monkeypatch)) < 2e-5


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("ddim", {"steps_offset": 0}),
        ("plms", {"steps_offset": 0}),
        ("ddpm", {"steps_offset": 0}),
        ("euler", {"timestep_spacing": "trailing"}),
        ("euler_a", {"timestep_spacing": "trailing"}),
        ("heun", {"timestep_spacing": "trailing"}),
        ("lms", {"timestep_spacing": "trailing"}),
        ("dpmpp_2m", {"solver_type": "heun"}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}),
        ("unipc", {"solver_order": 3}),
        ("unipc", {"disable_corrector": [7]}),
        ("dpmpp_sde", {"timestep_spacing": "trailing"}),
        ("dpmpp_3m_sde", {"solver_type": "midpoint"}),
        ("dpmpp_3m_sde", {"solver_order": 2}),
        ("dpmpp_3m_sde", {"lower_order_final": True}),
        ("dpmpp_3m_sde", {"mended": False}),
        ("dpm2", {"timestep_spacing": "trailing"}),
        ("dpm2_a", {"timestep_spacing": "trailing"}),
        ("deis", {"solver_order": 3}),
        ("deis", {"lower_order_final": False}),
        ("lcm", {"original_inference_steps": 40}),
    ],
)
def test_a_wrong_setting_would_be_seen(name, wrong, monkeypatch):
    steps = 4 if name == "lcm" else 10
    error = relative(ours(name, "epsilon", steps), theirs(make(name, **wrong), steps, monkeypatch))
    assert error > 2 * DIFFUSERS[name][2]


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_karras_rounding_is_diffusers_own(name):
    """With its rounded t the same run is off by more than rounding errors: the difference is the peer's, and small."""
    scheduler = make(name, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    x = torch.tensor(NOISE)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t, torch), t, x).prev_sample
    assert 1e-5 < relative(ours(name, "epsilon", 20, sigmas="karras"), x.numpy()) < 1e-2


def test_without_noise_diffusers_needs_no_mending(monkeypatch):
    """dpmpp_3m_sde with eta 0 is DPM-Solver++(3M), where diffusers' weights are k-diffusion's."""
    for steps in (5, 20):
        expected = theirs(make("dpmpp_2m", **THIRD), steps, monkeypatch)
        assert relative(ours("dpmpp_3m_sde", "epsilon", steps, eta=0.0), expected) < 2e-5


def test_independent_noises_would_be_seen(monkeypatch):
    scheduler = make("dpmpp_sde")
    found, expected = ours("dpmpp_sde", "epsilon", 10), theirs(scheduler, 10, monkeypatch)
    assert relative(found, expected) < 1e-4
    monkeypatch.setattr(Increments, "__call__", lambda self, start, end: self.draw())
    assert relative(found, theirs(scheduler, 10, monkeypatch)) > 1e-2


@pytest.mark.parametrize("steps", [2, 3, 20])
@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2s_a", "dpmpp_3m_sde", "dpm2", "dpm2_a"])
def test_k_diffusion_itself(name, sigmas, steps):
    """Where k-diffusion is installed: its own samplers and levels, and for dpmpp_sde its own Brownian tree.

    What that tree gives is taken apart into the noises of our rows, which are unit noise and independent.
    """
    theirs = pytest.importorskip("k_diffusion.sampling")
    schedule, t64 = make_schedule(ScheduleConfig()), torch.float64
    function = {
        "dpmpp_sde": theirs.sample_dpmpp_sde,
        "dpmpp_2s_a": theirs.sample_dpmpp_2s_ancestral,
        "dpmpp_3m_sde": theirs.sample_dpmpp_3m_sde,
        "dpm2": theirs.sample_dpm_2,
        "dpm2_a": theirs.sample_dpm_2_ancestral,
    }[name]
    levels = getattr(theirs, f"get_sigmas_{sigmas}")(steps, *schedule.sigmas[[0, -1]]).to(t64)
    tree = theirs.BrownianTreeNoiseSampler(torch.zeros(NOISE.shape, dtype=t64), levels[-2], levels[0], seed=7)
    drawn = []

    def noise(start, end):
        drawn.append((float(start), float(end), tree(start, end).numpy()))
        return torch.tensor(drawn[-1][2])

    def denoiser(y, sigma, **_):
        t = sigma_to_t(schedule, float(sigma[0]))
        alpha, s = alpha_s(float(sigma[0]))
        return (alpha * y - s * model(alpha * y, t, torch)) / alpha

    start = torch.tensor(NOISE) * levels[0]
    expected = function(denoiser, start, levels, disable=True, **{} if name == "dpm2" else {"noise_sampler": noise})
    fresh = np.zeros_like(FRESH)
    if name == "dpmpp_sde":
        for i, ((begin, middle, first), (_, end, whole)) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
            rest = (begin - end) ** 0.5 * whole - (begin - middle) ** 0.5 * first
            fresh[2 * i], fresh[2 * i + 1] = first, rest / (middle - end) ** 0.5
        if steps == 20:
            noises = fresh[: len(drawn)].reshape(len(drawn), -1)
            assert noises.std() == pytest.approx(1, abs=0.03)
            assert np.corrcoef(noises[::2].ravel(), noises[1::2].ravel())[0, 1] == pytest.approx(0, abs=0.06)
    else:
        for i, (_, _, one) in enumerate(drawn):
            fresh[i if name == "dpmpp_3m_sde" else 2 * i + 1] = one
    own = plan.plan(name, schedule, steps, sigmas=sigmas)
    own = own._replace(start=np.float32(alpha_s(float(levels[0]))[1]))
    config = ScheduleConfig()
    called = to_denoiser(config, at_timesteps(config, lambda x, t: model(x, t[:, None, None, None], jnp)))
    found = sampler.sample(own.rows, called, sampler.start(own, NOISE), jnp.asarray(fresh, jnp.float32).__getitem__).x
    assert relative(found, expected.numpy()) < 1e-4
