"""Samplers on the bundled model: txt2img and img2img against diffusers' schedulers and k-diffusion's formulas.

The model is ours on both sides, with guidance, in float32; the peers' steps are taken in float64.
"""

from functools import cache

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.diffusion.plan import make_grid  # noqa: E402
from sdjax.diffusion.process import alpha_s  # noqa: E402
from sdjax.diffusion.schedule import SIGMAS, make_schedule, t_to_sigma  # noqa: E402
from sdjax.diffusion.tables import samplers  # noqa: E402
from tests.diffusion.k_diffusion import KDIFFUSION  # noqa: E402
from tests.parity.test_samplers import DIFFUSERS, follow_noise, make, peers_draws, relative  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]

NEW = ("dpmpp_sde", "dpmpp_2s_a", "dpmpp_3m_sde", "dpm2", "dpm2_a", "deis")
PROMPT, SEED, SCALE, STEPS = "a 3d render of a red apple on a yellow background", 3, 4.0, 10
SHAPE = (16, 16, 4)
DRAWN = {"steps": STEPS, "seed": SEED, "guidance_scale": SCALE, "output": "latents"}
PICTURE = np.random.default_rng(0).uniform(-1, 1, (1, *SHAPE)).astype(np.float32)  # latents


@cache
def model():
    """(the bundled model, its denoiser with guidance: (x, sigma) -> x0 in float64)."""
    sd = sdjax.load("emoji")
    cond, uncond = (sdjax.encode_prompt(sd, [text]) for text in (PROMPT, ""))
    denoiser = jax.jit(sdjax.denoiser(sd, cond, uncond, SCALE))
    return sd, lambda x, sigma: np.asarray(denoiser(x.astype(np.float32), np.float32(sigma)), np.float64)


@cache
def noises():
    """(the first noise, that of each row), as txt2img draws them for the seed: [1, 16, 16, 4] each."""
    key = jax.random.key(SEED)
    draw = lambda key: np.asarray(jax.random.normal(key, SHAPE), np.float64)[None]
    return draw(key), np.stack([draw(jax.random.fold_in(key, row)) for row in range(2 * STEPS)])


def k_diffusion(name, sigmas, strength=None):
    """What k-diffusion's sampler makes of the model from our levels."""
    (sd, denoiser), (first, fresh) = model(), noises()
    levels = make_grid(samplers[name], make_schedule(sd.config.schedule), STEPS, sigmas, None).sigma
    left_out = 0 if strength is None else STEPS - int(STEPS * strength)
    levels = levels[left_out:]
    start = levels[0] * first if strength is None else PICTURE + levels[0] * first
    if strength is None and not samplers[name].scaled:
        start = first / alpha_s(levels[0])[0]
    y = KDIFFUSION[name](lambda y, sigma: denoiser(y * alpha_s(sigma)[0], sigma), start, levels, fresh)
    return y * alpha_s(levels[-1])[0]


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("name", NEW)
def test_k_diffusion(name, sigmas):
    found = sdjax.txt2img(model()[0], PROMPT, sampler=name, sigmas=sigmas, **DRAWN)
    error = relative(found, k_diffusion(name, sigmas))
    print(f"{name} {sigmas}: {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("name", NEW)
def test_k_diffusion_from_a_picture(name):
    found = sdjax.img2img(model()[0], PROMPT, PICTURE, strength=0.6, sampler=name, **DRAWN)
    error = relative(found, k_diffusion(name, "default", 0.6))
    print(f"{name}: {error:.1e}")
    assert error < 1e-4


def diffusers_walk(name, monkeypatch, **settings):
    """diffusers' loop with our model as a predictor of v."""
    (sd, denoiser), (first, fresh) = model(), noises()
    schedule = make_schedule(sd.config.schedule)
    scheduler = make(name, "v", **settings)
    draws = peers_draws(type(scheduler).__name__, fresh)
    follow_noise(scheduler, lambda: torch.tensor(next(draws)), monkeypatch)
    scheduler.set_timesteps(STEPS)
    x = torch.tensor(first) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        sigma = t_to_sigma(schedule, float(t))
        alpha, s = alpha_s(sigma)
        v = (alpha * scaled.numpy() - denoiser(scaled.numpy(), sigma)) / s
        x = scheduler.step(torch.tensor(v), t, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("name", [name for name in NEW if name in DIFFUSERS])
def test_diffusers(name, monkeypatch):
    sd = model()[0]
    config = sd.config.schedule
    assert (config.beta_start, config.beta_end, config.prediction) == (0.00085, 0.012, "v"), "as `make` has it"
    found = sdjax.txt2img(sd, PROMPT, sampler=name, **DRAWN)
    error = relative(found, diffusers_walk(name, monkeypatch))
    print(f"{name}: {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("name", NEW)
def test_a_step_more_would_be_seen(name):
    found = sdjax.txt2img(model()[0], PROMPT, sampler=name, **DRAWN | {"steps": STEPS + 1})
    assert relative(found, k_diffusion(name, "default")) > 1e-3
