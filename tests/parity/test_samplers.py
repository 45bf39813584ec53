"""DDIM and PLMS against diffusers' schedulers, from the same noise and the same nonlinear model."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from sdjax import sampler  # noqa: E402
from sdjax.config import ScheduleConfig  # noqa: E402
from sdjax.denoise import make_denoiser  # noqa: E402
from sdjax.schedule import make_schedule  # noqa: E402

pytestmark = pytest.mark.parity

NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 4))
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}
COMMON = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
          "set_alpha_to_one": False, "timestep_spacing": "leading"}


def model(x, t, xp):
    """Bounded, nonlinear in x and t."""
    return xp.tanh(0.7 * x + 0.1) + 0.2 * xp.sin(x * (1 + t / 400))


def ours(name: str, prediction: str, steps: int) -> np.ndarray:
    config = replace(ScheduleConfig(), prediction=prediction)
    plan = sampler.plan(name, make_schedule(config), steps)
    denoiser = make_denoiser(config, lambda x, t: model(x, t[:, None, None, None], jnp))
    return np.asarray(sampler.sample(plan.rows, denoiser, sampler.start(plan, NOISE), lambda row: 0.0).x)


def theirs(scheduler, steps: int) -> np.ndarray:
    scheduler.set_timesteps(steps)
    x = torch.tensor(NOISE)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t, torch), t, x).prev_sample
    return x.numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("steps", [5, 10, 20, 25, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_ddim(steps, prediction):
    scheduler = diffusers.DDIMScheduler(**COMMON, prediction_type=PREDICTION[prediction], clip_sample=False)
    assert relative(ours("ddim", prediction, steps), theirs(scheduler, steps)) < 2e-5


@pytest.mark.parametrize("steps", [5, 10, 20, 25, 50])
def test_plms(steps):
    """eps-prediction only: of a v-model diffusers averages the v's, and PLMS (arXiv 2202.09778) averages the eps'."""
    scheduler = diffusers.PNDMScheduler(**COMMON, prediction_type="epsilon", skip_prk_steps=True)
    assert relative(ours("plms", "epsilon", steps), theirs(scheduler, steps)) < 2e-5


def test_an_offset_of_one_timestep_would_be_seen():
    scheduler = diffusers.DDIMScheduler(**(COMMON | {"steps_offset": 0}), prediction_type="epsilon", clip_sample=False)
    assert relative(ours("ddim", "epsilon", 20), theirs(scheduler, 20)) > 2e-4
