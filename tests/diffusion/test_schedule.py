import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.schedule import (
    ScheduleConfig,
    karras_sigmas,
    leading_timesteps,
    linspace_timesteps,
    make_schedule,
    open_linspace_timesteps,
    sigma_to_t,
    t_to_sigma,
    trailing_timesteps,
)
from sdjax.diffusion.tables import lcm_timesteps

SCHEDULE = make_schedule(ScheduleConfig())


def test_pinned_values():
    assert SCHEDULE.alphas_cumprod.dtype == np.float64
    assert SCHEDULE.alphas_cumprod[0] == pytest.approx(0.99915, abs=1e-12)
    assert SCHEDULE.alphas_cumprod[999] == pytest.approx(0.0046601, abs=5e-8)
    assert SCHEDULE.sigmas[[0, 999]] == pytest.approx([0.029167, 14.614641], abs=5e-7)
    assert (np.diff(SCHEDULE.alphas_cumprod) < 0).all()


def test_zero_terminal_snr():
    """Algorithm 1 of arXiv 2305.08891: sqrt(abar) is moved and stretched, its first value stays, its last is 0."""
    schedule = make_schedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    before, after = np.sqrt(SCHEDULE.alphas_cumprod), np.sqrt(schedule.alphas_cumprod)
    assert after[0] == pytest.approx(before[0], abs=1e-12) and after[-1] == 0 and schedule.ends_in_noise
    slope, shift = np.polyfit(before, after, 1)
    np.testing.assert_allclose(after, slope * before + shift, atol=1e-12)
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, atol=1e-12)
    assert np.isfinite(schedule.sigmas).all() and (np.diff(schedule.sigmas) > 0).all() and not SCHEDULE.ends_in_noise
    assert sigma_to_t(schedule, schedule.sigmas).tolist() == pytest.approx(range(1000))


@pytest.mark.parametrize(
    "spaced", [leading_timesteps, trailing_timesteps, linspace_timesteps, open_linspace_timesteps, lcm_timesteps]
)
def test_timesteps_are_as_many_as_asked_in_range_and_falling(spaced):
    for steps in range(1, 1001):
        ts = spaced(1000, steps)
        assert len(ts) == steps and ts[-1] >= 0 and ts[0] <= 999
        assert (np.diff(ts) < 0).all()


def test_spacings():
    assert leading_timesteps(1000, 1000)[[0, -1]].tolist() == [999, 0]
    assert leading_timesteps(1000, 999)[[0, -1]].tolist() == [999, 1]
    assert trailing_timesteps(1000, 3).tolist() == [999, 666, 332]
    assert linspace_timesteps(1000, 4).tolist() == [999, 666, 333, 0]
    assert open_linspace_timesteps(1000, 3).tolist() == [999, 666, 333]
    assert lcm_timesteps(1000, 4).tolist() == [999, 759, 499, 259]
    assert [spaced(1000, 1)[0] for spaced in (leading_timesteps, linspace_timesteps, lcm_timesteps)] == [1, 999, 999]


def test_karras_sigmas():
    """Eq. 5 of arXiv 2206.00364, from the schedule's last to its first."""
    sigmas = karras_sigmas(SCHEDULE, 5)
    np.testing.assert_allclose(sigmas[[0, -1]], SCHEDULE.sigmas[[-1, 0]])
    np.testing.assert_allclose(np.diff(sigmas ** (1 / 7), 2), 0, atol=1e-12)
    assert karras_sigmas(SCHEDULE, 1) == pytest.approx(SCHEDULE.sigmas[-1])


def test_leading_timesteps_equal_compvis_where_it_is_sound():
    for steps in (5, 10, 20, 25, 50):
        compvis = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
        np.testing.assert_array_equal(leading_timesteps(1000, steps), compvis[::-1])
    assert leading_timesteps(1000, 50)[[0, -1]].tolist() == [981, 1]


def test_sigma_and_t_are_inverse():
    t = np.linspace(0, 999, 777)
    np.testing.assert_allclose(sigma_to_t(SCHEDULE, t_to_sigma(SCHEDULE, t)), t, atol=1e-9)
    np.testing.assert_allclose(t_to_sigma(SCHEDULE, np.arange(1000)), SCHEDULE.sigmas, rtol=1e-12)
    assert sigma_to_t(SCHEDULE, [1e-9, 1e9]).tolist() == [0, 999]


def test_float32_sigma_to_t_is_within_its_stated_error():
    t = sigma_to_t(SCHEDULE, jnp.asarray(SCHEDULE.sigmas, jnp.float32), jnp)
    np.testing.assert_allclose(t, np.arange(1000), atol=2e-4)
