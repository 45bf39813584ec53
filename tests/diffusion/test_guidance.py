import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import prediction
from sdjax.diffusion.guidance import (
    at_timesteps,
    by_level,
    composed_part,
    in_interval,
    step_at,
    to_denoiser,
    with_function,
    with_guidance,
    with_known_region,
)
from sdjax.diffusion.prediction import add_noise, alpha_s_like
from sdjax.diffusion.schedule import ScheduleConfig, make_schedule
from sdjax.errors import SdjaxError
from sdjax.types import Cond

SIGMAS = make_schedule(ScheduleConfig()).sigmas
x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, np.float32([0.03, 1.0, 14.6])])
def test_conversions_find_what_made_x(sigma):
    x = add_noise(x0, eps, sigma)
    alpha, s = alpha_s_like(sigma, x)
    v = alpha * eps - s * x0
    np.testing.assert_allclose(alpha**2 + s**2, 1, atol=1e-6)
    for found, wanted in (
        (prediction.eps_to_x0(x, eps, sigma), x0),
        (prediction.v_to_x0(x, v, sigma), x0),
        (prediction.v_to_eps(x, v, sigma), eps),
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_denoiser_calls_the_model_at_whole_timesteps():
    seen = []
    denoiser = to_denoiser(ScheduleConfig(), at_timesteps(ScheduleConfig(), lambda x, t: seen.append(t) or x))
    for t in (0, 1, 500, 981, 999):
        denoiser(jnp.ones((2, 1, 1, 4)), jnp.float32(SIGMAS[t]))
        assert seen[-1].tolist() == [t, t]
    denoiser(jnp.ones((1, 1, 1, 4)), jnp.float32(np.sqrt(SIGMAS[700] * SIGMAS[701])))
    assert seen[-1] == pytest.approx(700.5, abs=1e-3)


def test_denoiser_reads_eps_v_and_x0():
    sigma = jnp.float32(SIGMAS[500])
    x = add_noise(x0, eps, sigma)
    alpha, s = alpha_s_like(sigma, x)
    for kind, out in (("epsilon", eps), ("v", alpha * eps - s * x0), ("x0", x0)):
        denoiser = to_denoiser(ScheduleConfig(prediction=kind), lambda x, sigma, out=out: out)
        np.testing.assert_allclose(denoiser(x, sigma), x0, atol=1e-5)
    with pytest.raises(SdjaxError, match="epsilon, v, x0"):
        to_denoiser(ScheduleConfig(prediction="score"), None)


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


LEVELS = np.float32([14.0, 5.0, 2.0, 0.5, 0.0, 0.0])  # four steps and padding


def test_numbers_of_a_step():
    steps = [int(step_at(LEVELS, np.float32(sigma))) for sigma in (20, 14, 9, 5, 2, 1, 0.5, 0.01)]
    assert steps == [0, 0, 1, 1, 2, 3, 3, 3], "from each level down to the next; below the last it is the last step's"
    scale = in_interval(by_level(LEVELS, np.float32([2, 3, 4, 5, 9, 9])), 0.5, 5.0)
    assert [float(scale(np.float32(sigma))) for sigma in (14, 5, 2, 0.5, 0.4)] == [1, 3, 4, 5, 1]


def scaled(x, sigma, cond):
    return x * cond.context[:, :1, :1, None]


CONDS = Cond(jnp.full((3, 2, 5), 0.3)), Cond(jnp.full((3, 2, 5), 0.7))


def test_guidance_by_level():
    """Where the scale is 1 the model is called once; a function of sigma says where."""
    batches = []
    predict = lambda x, sigma, cond: jax.debug.callback(lambda x: batches.append(len(x)), x) or scaled(x, sigma, cond)
    guided = jax.jit(with_guidance(predict, *CONDS, by_level(LEVELS, np.float32([1, 3, 1, 1, 1, 1]))))
    for sigma, factor, calls in ((14.0, 0.7, [3]), (5.0, 0.3 + 3 * 0.4, [6])):
        np.testing.assert_allclose(guided(x0, sigma), x0 * factor, rtol=1e-5)
        jax.effects_barrier()
        assert batches == calls
        batches.clear()


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale(phi):
    """arXiv 2305.08891, Eq. 15 and 16: at 1 each image has the conditional prediction's standard deviation."""
    predict = lambda x, sigma, cond: jnp.sin(x * cond.context[:, :1, :1, None])
    out = np.asarray(with_guidance(predict, *CONDS, 7.5, phi)(x0, 1.0))
    u, c = (np.asarray(predict(x0, 1.0, cond)) for cond in CONDS)
    cfg, std = u + 7.5 * (c - u), lambda a: a.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(out, phi * cfg * std(c) / std(cfg) + (1 - phi) * cfg, rtol=1e-4, atol=1e-5)
    assert phi < 1 or np.allclose(std(out), std(c), rtol=1e-4)


def test_function_of_one_s_own():
    seen = []
    denoiser = with_function(lambda x, sigma: 2 * x, lambda x, x0, step: seen.append(int(step)) or x0 - x, LEVELS)
    np.testing.assert_allclose(denoiser(x0, np.float32(2.0)), x0)
    assert seen == [2]


def test_what_stands_beside_x_is_the_same_on_both_sides():
    """A map or a mask is no wish that guidance could push away from."""
    extra = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 4, 4, 2))
    uncond, cond = CONDS
    seen = lambda x, sigma, cond: cond.concat + 0 * cond.context[:, :1, :1, None]
    np.testing.assert_array_equal(with_guidance(seen, uncond, cond._replace(concat=extra), 3.0)(x0, 1.0), extra)
    other = uncond._replace(concat=extra + 1)
    want = extra + 1 + 3 * (extra - (extra + 1))
    np.testing.assert_allclose(with_guidance(seen, other, cond._replace(concat=extra), 3.0)(x0, 1.0), want)


def test_parts_that_are_composed_share_what_stands_beside_x():
    context, vector = jnp.arange(24.0).reshape(3, 2, 2, 2), jnp.arange(6.0).reshape(3, 2, 1)
    extra, mix = jnp.ones((3, 4, 4, 2)), jnp.asarray([[1.0, 0.5]] * 3)
    cond = Cond(context, mix, vector, extra)
    for i in range(2):
        part = composed_part(cond, i)
        assert part.mix is None and part.concat is extra
        np.testing.assert_array_equal(part.context, context[:, i])
        np.testing.assert_array_equal(part.vector, vector[:, i])


def test_known_region():
    mask = np.zeros((1, 4, 4, 1), np.float32)
    mask[:, :2] = 1
    seen = []
    denoiser = with_known_region(lambda x, sigma: seen.append(np.asarray(x)) or x * 0, x0, eps, mask, np.float32(5))
    noise = np.asarray(np.random.default_rng(1).normal(size=x0.shape), np.float32)
    for sigma in np.float32([5, 2]):
        out = np.asarray(denoiser(noise, sigma))
        np.testing.assert_array_equal(out, np.where(mask == 0, x0, 0))
    np.testing.assert_array_equal(seen[0], noise)
    np.testing.assert_allclose(seen[1], np.where(mask == 0, add_noise(x0, eps, np.float32(2)), noise), rtol=1e-6)


SIGMAS_OF_IMAGES = np.float32([14.0, 2.0, 0.4])
WRAPPED = {
    "guidance": lambda some: to_denoiser(ScheduleConfig(), with_guidance(scaled, *some(CONDS), 3.0, 0.5)),
    "guidance by level, in an interval": lambda some: to_denoiser(
        ScheduleConfig(prediction="v"),
        with_guidance(scaled, *some(CONDS), in_interval(by_level(LEVELS, np.float32([2, 3, 4, 5, 9, 9])), 0.1, 5.0)),
    ),
    "rescale by level": lambda some: to_denoiser(
        ScheduleConfig(), with_guidance(scaled, *some(CONDS), 3.0, by_level(LEVELS, np.float32([0, 1, 0.5, 1, 0, 0])))
    ),
    "prompts composed with AND": lambda some: to_denoiser(
        ScheduleConfig(),
        with_guidance(
            scaled,
            some(CONDS[0]),
            some(Cond(jnp.stack([CONDS[1].context, 2 * CONDS[1].context], 1), jnp.full((3, 2), 0.5))),
            by_level(LEVELS, np.float32([2, 3, 4, 5, 9, 9])),
        ),
    ),
    "a function of one's own": lambda some: with_function(
        lambda x, sigma: x / 2, lambda x, x0, step: x0 + jnp.reshape(step, (-1, 1, 1, 1)), LEVELS
    ),
    "a known region": lambda some: with_known_region(
        lambda x, sigma: x / 2, some(x0), some(eps), np.eye(4, dtype=np.float32)[None, :, :, None], np.float32(5)
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_batch_of_different_sigmas_equals_each_alone(name):
    """The denoiser's contract: sigma is a scalar or [B]."""
    x = np.random.default_rng(2).normal(size=x0.shape).astype(np.float32)
    together = WRAPPED[name](lambda tree: tree)(x, jnp.asarray(SIGMAS_OF_IMAGES))
    for i, sigma in enumerate(SIGMAS_OF_IMAGES):
        some = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i : i + 1], tree)
        alone = WRAPPED[name](some)(x[i : i + 1], sigma)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
