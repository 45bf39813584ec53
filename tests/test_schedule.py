import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import ScheduleConfig
from sdjax.schedule import leading_timesteps, make_schedule, sigma_to_t, t_to_sigma

SCHEDULE = make_schedule(ScheduleConfig())


def test_pinned_values():
    assert SCHEDULE.alphas_cumprod.dtype == np.float64
    assert SCHEDULE.alphas_cumprod[0] == pytest.approx(0.99915, abs=1e-12)
    assert SCHEDULE.alphas_cumprod[999] == pytest.approx(0.0046601, abs=5e-8)
    assert SCHEDULE.sigmas[[0, 999]] == pytest.approx([0.029167, 14.614641], abs=5e-7)
    assert (np.diff(SCHEDULE.alphas_cumprod) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 30, 50, 300, 333, 400, 501, 999, 1000])
def test_leading_timesteps_are_as_many_as_asked_and_in_range(steps):
    ts = leading_timesteps(1000, steps)
    assert len(ts) == steps and ts[-1] == 1 and ts[0] <= 999
    assert (np.diff(ts) <= 0).all()


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
