"""Noise, the denoiser of a whole model, and gradients through a walk with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion import noise
from sdjax.diffusion.plan import plan
from sdjax.diffusion.prediction import PREDICTIONS
from sdjax.diffusion.sampler import sample, start
from sdjax.diffusion.schedule import make_schedule
from sdjax.tasks import stages
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
SHAPE = (8, 8, 4)
A, B = np.random.default_rng(0).normal(size=(2, 3, *SHAPE)).astype(np.float32)


def test_slerp():
    """Both ends to the bit, between them one length and even angles; the same noise on both sides is left alone."""
    np.testing.assert_array_equal(noise.slerp(A, B, 0.0), A)
    np.testing.assert_array_equal(noise.slerp(A, B, 1.0), B)
    length = lambda x: np.sqrt(np.sum(np.square(x), axis=(1, 2, 3)))
    angle = lambda x, y: np.arccos(np.sum(x * y, axis=(1, 2, 3)) / length(x) / length(y))
    b = B * (length(A) / length(B))[:, None, None, None]
    for weight in (0.1, 0.5, 0.8):
        x = np.asarray(noise.slerp(A, b, weight))
        np.testing.assert_allclose(angle(A, x), weight * angle(A, b), rtol=1e-3)
        np.testing.assert_allclose(length(x), length(A), rtol=1e-4)
    np.testing.assert_allclose(noise.slerp(A, A, 0.3), A, atol=1e-5)


def test_draws():
    seeds = np.uint32([7, 8])
    draws = lambda weight, stream=None: noise.image_draws(seeds, np.uint32(3), np.float32(weight), stream)
    first = noise.draw(draws(0), SHAPE)
    np.testing.assert_array_equal(first[1], jax.random.normal(jax.random.key(8), SHAPE))
    np.testing.assert_array_equal(noise.draw(draws(1), SHAPE)[1], jax.random.normal(jax.random.key(3), SHAPE))
    np.testing.assert_array_equal(noise.draw(draws(0), SHAPE, A[:2]), A[:2])
    others = [noise.fresh(draws(0), 0, SHAPE), noise.fresh(draws(0), 1, SHAPE), noise.draw(draws(0, 5), SHAPE)]
    for n, x in enumerate([first, *others]):
        for y in [first, *others][n + 1 :]:
            assert abs(np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]) < 0.2


def test_denoiser_is_the_model_s_prediction():
    sd = tiny()
    cond, uncond = (sdjax.encode_prompt(sd, [word]) for word in ("cat", ""))
    x, sigma = A[:1], np.float32(make_schedule(sd.config.schedule).sigmas[500])
    to_x0 = lambda out: PREDICTIONS[sd.config.schedule.prediction].to_x0(x, out, sigma)
    c, u = (sdjax.predict(sd, x, 500, side) for side in (cond, uncond))
    np.testing.assert_allclose(sdjax.denoiser(sd, cond)(x, sigma), to_x0(c), atol=1e-4)
    np.testing.assert_allclose(sdjax.denoiser(sd, cond, uncond, 3.0)(x, sigma), to_x0(u + 3 * (c - u)), atol=1e-3)


def test_gradient_through_a_whole_walk():
    """Of the latents' mean square in noise and text, by central differences; with a function of one's own in it."""
    sd = tiny()
    cond = sdjax.encode_prompt(sd, ["cat"])
    table = plan("ddim", make_schedule(sd.config.schedule), 2)

    def loss(noise, context):
        model = sdjax.denoiser(sd, cond._replace(context=context))
        pulled = stages.with_function(
            model, lambda x, x0, step: x0 - 0.1 * jax.grad(lambda y: jnp.sum(y**4))(x0) / 4, table.levels
        )
        return jnp.mean(sample(table.rows, pulled, start(table, noise), remat=True).x ** 2)

    at, h = (A[:1], cond.context), 1e-2
    direction = [np.random.default_rng(1).normal(size=a.shape).astype(np.float32) for a in at]
    value_and_gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    _, gradient = value_and_gradient(*at)
    slope = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    moved = lambda side: value_and_gradient(*(a + side * h * d for a, d in zip(at, direction, strict=True)))[0]
    there, back = moved(1), moved(-1)
    np.testing.assert_allclose(slope, (there - back) / (2 * h), rtol=2e-2)
    assert all(jnp.abs(g).max() > 1e-6 for g in gradient)


def test_denoiser_refuses_by_name_what_it_cannot_take():
    sd, inpainting = tiny(), tiny(channels=9)
    cond, composed = sdjax.encode_prompt(sd, ["cat"]), sdjax.encode_prompt(sd, ["cat AND dog"])
    with pytest.raises(sdjax.SdjaxError, match=r"sd tiny: an inpainting model \(9 channels\)"):
        sdjax.denoiser(inpainting, cond)
    with pytest.raises(sdjax.SdjaxError, match=r"cond.context has shape \[1, 2, 8, 16\].*AND.*uncond"):
        sdjax.denoiser(sd, composed)
    with pytest.raises(sdjax.SdjaxError, match=r"uncond.context has shape \[1, 2, 8, 16\]"):
        sdjax.denoiser(sd, cond, composed)
    assert sdjax.denoiser(sd, composed, cond, 2.0)(A[:1], 2.0).shape == A[:1].shape


def test_a_model_s_name_and_size_are_not_compiled_for():
    """The same weights under another name, such as every training's export, run the programs that there are."""
    from dataclasses import replace

    options = {"steps": 2, "height": 16, "width": 16, "output": "pixels", "guidance_scale": 4.0}
    draw = lambda sd: sdjax.txt2img(sd, "cat", **options)
    sd = tiny()
    before = draw(sd)
    sizes = [function._cache_size() for function in (stages.walk, stages.decode_clipped, stages.encode)]
    other = replace(sd, config=replace(sd.config, name="export", size=32, guidance_scale=3.0))
    np.testing.assert_array_equal(draw(other), before)
    assert [function._cache_size() for function in (stages.walk, stages.decode_clipped, stages.encode)] == sizes
