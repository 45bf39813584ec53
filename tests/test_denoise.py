import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import denoise
from sdjax.config import ScheduleConfig
from sdjax.denoise import add_noise, make_denoiser, with_guidance
from sdjax.errors import SdjaxError
from sdjax.schedule import make_schedule
from sdjax.types import Cond

SIGMAS = make_schedule(ScheduleConfig()).sigmas
x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, np.float32([0.03, 1.0, 14.6])])
def test_conversions_find_what_made_x(sigma):
    x = add_noise(x0, eps, sigma)
    alpha, s = denoise.weights(sigma, x)
    v = alpha * eps - s * x0
    np.testing.assert_allclose(alpha**2 + s**2, 1, atol=1e-6)
    for found, wanted in ((denoise.eps_to_x0(x, eps, sigma), x0), (denoise.x0_to_eps(x, x0, sigma), eps),
                          (denoise.v_to_x0(x, v, sigma), x0), (denoise.v_to_eps(x, v, sigma), eps)):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_denoiser_calls_the_model_at_whole_timesteps():
    seen = []
    denoiser = make_denoiser(ScheduleConfig(), lambda x, t: seen.append(t) or x)
    for t in (0, 1, 500, 981, 999):
        denoiser(jnp.ones((2, 1, 1, 4)), jnp.float32(SIGMAS[t]))
        assert seen[-1].tolist() == [t, t]
    denoiser(jnp.ones((1, 1, 1, 4)), jnp.float32(np.sqrt(SIGMAS[700] * SIGMAS[701])))
    assert seen[-1] == pytest.approx(700.5, abs=1e-3)


def test_denoiser_reads_eps_and_v():
    sigma = jnp.float32(SIGMAS[500])
    x = add_noise(x0, eps, sigma)
    alpha, s = denoise.weights(sigma, x)
    for kind, out in (("epsilon", eps), ("v", alpha * eps - s * x0)):
        denoiser = make_denoiser(ScheduleConfig(prediction=kind), lambda x, t, out=out: out)
        np.testing.assert_allclose(denoiser(x, sigma), x0, atol=1e-5)
    with pytest.raises(SdjaxError, match="epsilon, v"):
        make_denoiser(ScheduleConfig(prediction="score"), None)


def test_guidance():
    batches = []

    def predict(x, t, cond):
        batches.append((x.shape[0], cond.context[:, 0, 0]))
        return x * cond.context[:, :1, :1, None]

    uncond, cond = Cond(jnp.full((3, 2, 5), 0.3)), Cond(jnp.full((3, 2, 5), 0.7))
    t = jnp.zeros(3)
    guide = lambda scale: with_guidance(predict, uncond, cond, scale)(x0, t)
    np.testing.assert_array_equal(guide(1.0), predict(x0, t, cond))
    np.testing.assert_allclose(guide(0.0), predict(x0, t, uncond), atol=1e-6)
    np.testing.assert_allclose(guide(7.5), x0 * (0.3 + 7.5 * 0.4), rtol=1e-5)
    sizes = [size for size, _ in batches]
    assert sorted({*sizes}) == [3, 6], "one doubled batch, and the conditional half alone"
    assert np.isnan(guide(jnp.nan)).all(), "a NaN scale must not pass for no guidance"
    assert jax.jit(guide)(3.0).shape == x0.shape
