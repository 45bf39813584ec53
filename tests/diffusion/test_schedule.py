import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.schedule import (
    SIGMAS,
    ScheduleConfig,
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    leading_timesteps,
    linspace_timesteps,
    make_schedule,
    open_linspace_timesteps,
    sgm_uniform_sigmas,
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


@pytest.mark.parametrize("name", [name for name in SIGMAS if name != "default"])
def test_levels_are_as_many_as_asked_and_fall_from_the_last_sigma(name):
    for steps in [*range(1, 101), 333, 999, 1000]:
        sigmas = SIGMAS[name].sigmas(SCHEDULE, steps)
        assert len(sigmas) == steps and sigmas[0] == pytest.approx(SCHEDULE.sigmas[-1], rel=1e-12)
        assert (np.diff(sigmas) < 0).all() and sigmas[-1] >= SCHEDULE.sigmas[0] * (1 - 1e-12)
        if steps > 1 and name != "sgm_uniform":
            assert sigmas[-1] == pytest.approx(SCHEDULE.sigmas[0], rel=1e-12)


def test_exponential_sigmas():
    np.testing.assert_allclose(np.diff(np.log(exponential_sigmas(SCHEDULE, 9)), 2), 0, atol=1e-12)


def test_sgm_uniform_sigmas():
    """Of 1000 timesteps, 9 + 1 even ones from 999 to 0, without the last."""
    t = sigma_to_t(SCHEDULE, sgm_uniform_sigmas(SCHEDULE, 9))
    np.testing.assert_allclose(t, [999, 888, 777, 666, 555, 444, 333, 222, 111], atol=1e-9)


def test_beta_sigmas():
    """Symmetric about the middle of the range, and a Beta(0.6, 0.6) has as many above a level as numpy draws there."""
    sigmas = beta_sigmas(SCHEDULE, 101)
    np.testing.assert_allclose(sigmas + sigmas[::-1], SCHEDULE.sigmas[0] + SCHEDULE.sigmas[-1], rtol=1e-9)
    drawn = SCHEDULE.sigmas[0] + np.ptp(SCHEDULE.sigmas) * np.random.default_rng(0).beta(0.6, 0.6, 100_000)
    np.testing.assert_allclose([(drawn > sigma).mean() for sigma in sigmas], np.linspace(0, 1, 101), atol=0.006)


def test_what_may_start_at_an_infinite_sigma():
    """Zero terminal SNR: only levels of timesteps, for its first sigma only stands for infinity."""
    schedule = make_schedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    assert [name for name, levels in SIGMAS.items() if levels.infinite] == ["default", "sgm_uniform"]
    assert sgm_uniform_sigmas(schedule, 20)[0] == pytest.approx(schedule.sigmas[-1], rel=1e-12)


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
