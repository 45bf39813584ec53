"""SDXL's options, the walk that a refiner ends, and distilled models. tests/parity/test_sdxl_*.py compare with
diffusers."""

import logging
from dataclasses import replace

import numpy as np
import pytest

import sdjax
from sdjax.conditioning.sizes import size_features
from sdjax.diffusion.plan import plan
from sdjax.diffusion.schedule import ScheduleConfig, make_schedule
from sdjax.errors import SdjaxError
from sdjax.tasks.request_sdxl import turn_of
from sdjax.types import Cond
from tests.kinds import LCM, LCM_XL, REFINER, SDXL, SDXL_INPAINT, model

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
LONG = "abcdefgh"  # two chunks of 6 tokens


def draw(sd, prompt="ab", **options):
    return sdjax.txt2img(sd, prompt, **{"steps": 4, "output": "latents"} | options)


# ---- sizes, second prompts, zeros


@pytest.mark.parametrize("config, sizes", [(SDXL, (30, 40, 3, 5, 16, 24)), (REFINER, (30, 40, 3, 5, 2.0))])
def test_options_are_what_encode_prompt_is_given(config, sizes):
    sd = model(config)
    options = {"original_size": (30, 40), "crop": (3, 5)} | ({"target_size": (16, 24)} if config is SDXL else {})
    score = {} if config is SDXL else {"aesthetic_score": 2.0}
    second = {"prompt_2": "c"} if config is SDXL else {}
    cond = sdjax.encode_prompt(sd, "ab", **second, **options, **score)
    np.testing.assert_array_equal(cond.vector[0, 10:], size_features(np.array(sizes)))
    away = sdjax.encode_prompt(sd, "x", **options, **({} if config is SDXL else {"aesthetic_score": 2.5}))
    want = draw(sd, cond, negative_prompt=away)
    np.testing.assert_array_equal(draw(sd, negative_prompt="x", **second, **options, **score), want)
    # negative sizes of None are the positive ones
    negative = {f"negative_{name}": value for name, value in options.items()}
    np.testing.assert_array_equal(draw(sd, negative_prompt="x", **second, **options, **score, **negative), want)
    for name, value in negative.items():
        assert np.abs(draw(sd) - draw(sd, **{name: value})).max() > 1e-6, name


def test_sizes_of_none_are_the_picture_s():
    sd, size = model(SDXL), {"height": 16, "width": 24}
    given = {"original_size": (16, 24), "target_size": (16, 24)}
    np.testing.assert_array_equal(draw(sd, **size), draw(sd, **given, **size))
    assert np.abs(draw(sd, **size) - draw(sd, **given | {"target_size": (24, 16)}, **size)).max() > 1e-6


@pytest.mark.parametrize("config", [SDXL, REFINER])
def test_no_prompts_make_a_cond_of_no_images(config):
    none, one = (sdjax.encode_prompt(model(config), prompts) for prompts in ([], ["a"]))
    assert none.context.shape == (0, *one.context.shape[1:]) and none.vector.shape == (0, one.vector.shape[1])


def test_what_encode_prompt_refuses_of_a_refiner():
    with pytest.raises(SdjaxError, match=r"target_size .8, 8.: tiny-refiner takes none, SDXL does"):
        sdjax.encode_prompt(model(REFINER), "a", target_size=(8, 8))


def test_a_second_prompt_for_each_prompt():
    sd = model(SDXL)
    both = draw(sd, ["ab", "cd"], prompt_2=["x", "y"])
    np.testing.assert_allclose(both[1:], draw(sd, "cd", prompt_2="y", seed=1), atol=1e-4)
    np.testing.assert_allclose(draw(sd, "ab", prompt_2="x"), both[:1], atol=1e-4)
    np.testing.assert_array_equal(draw(sd, negative_prompt="n"), draw(sd, negative_prompt="n", negative_prompt_2="n"))
    assert np.abs(draw(sd, negative_prompt="n") - draw(sd, negative_prompt="n", negative_prompt_2="m")).max() > 1e-6


def test_an_empty_negative_prompt_is_zeros_where_the_model_or_the_caller_says_so():
    sd, refiner = model(SDXL), model(REFINER)
    for one, score in ((sd, {}), (refiner, {"aesthetic_score": 2.5})):
        empty = sdjax.encode_prompt(one, "", **score)
        zeros = Cond(
            np.zeros_like(empty.context), vector=np.asarray(empty.vector) * (np.arange(empty.vector.shape[1]) >= 10)
        )
        encoded, zeroed = draw(one, negative_prompt=empty), draw(one, negative_prompt=zeros)
        np.testing.assert_array_equal(draw(one, zero_negative=False), encoded)
        np.testing.assert_array_equal(draw(one, zero_negative=True), zeroed)
        np.testing.assert_array_equal(draw(one), zeroed if one is sd else encoded)
        assert np.abs(encoded - zeroed).max() > 1e-6 and np.isfinite(zeroed).all()
    np.testing.assert_array_equal(
        draw(sd, negative_prompt="", negative_prompt_2="x", zero_negative=True),
        draw(sd, negative_prompt="", negative_prompt_2="x", zero_negative=False),
    )


def test_no_picture_depends_on_the_other_prompts():
    sd, refiner = model(SDXL), model(REFINER)
    several = draw(sd, ["ab", LONG], refiner=refiner, refiner_start=0.5)
    np.testing.assert_array_equal(several[:1], draw(sd, "ab", refiner=refiner, refiner_start=0.5))


def test_composed_prompts_and_a_layer_too_early():
    sd = model(SDXL)
    composed = draw(sd, "ab AND cd :0.7")
    cond = sdjax.encode_prompt(sd, "ab AND cd :0.7")
    assert cond.vector.shape == (1, 2, 10 + 6 * 256) and cond.mix.shape == (1, 2)
    np.testing.assert_array_equal(composed, draw(sd, cond))
    with pytest.raises(SdjaxError, match="clip_skip 2: a whole number from 1"):
        draw(sd, clip_skip=2)


def test_an_embedding_has_vectors_for_both_towers(tmp_path):
    from safetensors.numpy import save_file

    vectors = {
        "clip_l": RNG.normal(size=(2, 16)).astype(np.float32),
        "clip_g": RNG.normal(size=(2, 12)).astype(np.float32),
    }
    save_file(vectors, tmp_path / "zorp.safetensors")
    sd = sdjax.add_embedding(model(SDXL), tmp_path / "zorp.safetensors")
    assert sd.embeddings["zorp"].shape == (2, 28)
    known = sdjax.encode_prompt(model(SDXL), "zorp")
    cond = sdjax.encode_prompt(sd, "zorp")
    for part in (slice(16), slice(16, None)):
        assert np.abs(np.asarray(cond.context - known.context)[..., part]).max() > 1e-3
    assert np.abs(np.asarray(cond.vector - known.vector)[:, :10]).max() > 1e-3  # the pooled one reads it too
    refiner = sdjax.add_embedding(model(REFINER), tmp_path / "zorp.safetensors")
    np.testing.assert_array_equal(refiner.embeddings["zorp"], vectors["clip_g"])
    save_file({"clip_g": vectors["clip_g"]}, tmp_path / "half.safetensors")
    with pytest.raises(SdjaxError, match=r"half.safetensors: holds 1 tensors \(clip_g\).* clip_l and clip_g"):
        sdjax.add_embedding(model(SDXL), tmp_path / "half.safetensors")
    save_file(vectors | {"clip_g": vectors["clip_g"][:1]}, tmp_path / "odd.safetensors")
    with pytest.raises(SdjaxError, match="clip_l and clip_g have 2 and 1 vectors"):
        sdjax.add_embedding(model(SDXL), tmp_path / "odd.safetensors")


# ---- the refiner


@pytest.mark.parametrize("sampler", sdjax.samplers)
def test_a_model_that_hands_over_to_itself_walks_as_one(sampler):
    sd = model(SDXL)
    whole = draw(sd, sampler=sampler, steps=7)
    for start in (0.0, 0.5, 0.8, 1.0):
        np.testing.assert_array_equal(draw(sd, sampler=sampler, steps=7, refiner=sd, refiner_start=start), whole)
    if sampler == "dpmpp_2m":
        steps = []
        got = draw(sd, sampler=sampler, steps=7, refiner=sd, progress=lambda n, of: steps.append((n, of)))
        np.testing.assert_allclose(got, whole, atol=1e-5 * np.abs(whole).max())  # another program, in float32
        assert steps == [(n, 7) for n in range(1, 8)]


def test_the_hand_over_is_at_a_timestep():
    """diffusers' count: the base walks t >= round(1000 - 1000 f)."""
    table = plan("ddim", make_schedule(ScheduleConfig()), 10)  # 901, 801 .. 1
    config = SDXL
    turns = {0.0: 0, 0.0985: 0, 0.099: 1, 0.1: 1, 0.19: 1, 0.2: 2, 0.8: 8, 1.0: 10}
    assert {start: turn_of(table, config, start) for start in turns} == turns


def test_the_refiner_walks_the_last_steps_with_its_own_prompt():
    sd, refiner = model(SDXL), model(REFINER)
    options = {"sampler": "dpmpp_2m", "steps": 8, "output": "trajectory"}
    walk, alone = draw(sd, refiner=refiner, refiner_start=0.6, **options), draw(sd, **options)
    same = [np.array_equal(a, b) for a, b in zip(walk.x0, alone.x0, strict=True)]
    assert same == [True] * 5 + [False] * 3  # 999, 874, 749, 624, 500; 375, 250, 125
    cond = sdjax.encode_prompt(refiner, "ab", original_size=(16, 16))
    uncond = sdjax.encode_prompt(refiner, "", original_size=(16, 16), aesthetic_score=2.5)
    x0 = sdjax.denoiser(refiner, cond, uncond, 5.0)(walk.x[5], walk.sigma[5])
    np.testing.assert_allclose(walk.x0[5], x0, rtol=1e-5, atol=1e-3)


def test_a_refiner_of_conds():
    sd, refiner = model(SDXL), model(REFINER)
    size = {"original_size": (16, 16)}
    prompt, negative = sdjax.encode_prompt(sd, "ab", **size), sdjax.encode_prompt(sd, "n", **size)
    theirs = sdjax.encode_prompt(refiner, "ab", **size), sdjax.encode_prompt(refiner, "n", aesthetic_score=2.5, **size)
    options = {"refiner": refiner, "refiner_start": 0.4}
    got = draw(sd, prompt, negative_prompt=negative, refiner_cond=theirs[0], refiner_negative=theirs[1], **options)
    np.testing.assert_allclose(got, draw(sd, negative_prompt="n", **options), atol=1e-6)
    with pytest.raises(SdjaxError, match="refiner_cond None: what tiny-refiner gets"):
        draw(sd, prompt, **options)
    with pytest.raises(SdjaxError, match="refiner_negative None: what tiny-refiner gets"):
        draw(sd, negative_prompt=negative, **options)


def test_hires_img2img_and_inpainting_hand_over_too():
    sd, refiner = model(SDXL), model(REFINER)
    picture = RNG.uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    mask = np.zeros((16, 16), np.float32)
    mask[:8] = 1
    for task, more in ((sdjax.hires, {"scale": 1.0}), (sdjax.img2img, {"image": picture})):
        whole, same, half = (task(sd, "ab", **more, output="latents", refiner=one) for one in (None, sd, refiner))
        np.testing.assert_array_equal(whole, same)
        assert whole.shape == half.shape and np.abs(whole - half).max() > 1e-6
    for base in (sd, model(SDXL_INPAINT)):
        options = {"steps": 6, "output": "pixels"}
        got = sdjax.inpaint(base, "ab", picture, mask, **options, refiner=refiner, refiner_start=0.7)
        np.testing.assert_array_equal(got[0, 8:], picture[8:])
        assert np.abs(got - sdjax.inpaint(base, "ab", picture, mask, **options)).max() > 1e-6


@pytest.mark.parametrize(
    "config, options, match",
    [
        (REFINER, {"prompt_2": "x"}, "prompt_2 'x': tiny-refiner takes none, SDXL does"),
        (REFINER, {"negative_prompt_2": "x"}, "negative_prompt_2 'x': tiny-refiner takes none"),
        (SDXL, {"prompt_2": 3}, "prompt_2 3: a string or a list of strings"),
        (SDXL, {"prompt_2": ["a", "b"]}, "prompt_2: 2 for 1 prompts, one or 1 expected"),
        (SDXL, {"crop": (1,)}, "crop .1,.: two whole numbers from 0 on, height or top first"),
        (SDXL, {"target_size": (0, 16)}, "target_size .0, 16.: two whole numbers from 1 on"),
        (REFINER, {"target_size": (8, 8)}, "target_size .8, 8.: tiny-refiner takes none, SDXL does"),
        (REFINER, {"negative_target_size": (8, 8)}, "negative_target_size .8, 8.: tiny-refiner takes none"),
        (SDXL, {"original_size": np.array([16, 16])}, r"original_size array\(.16, 16.\): two whole numbers from 1 on"),
        (SDXL, {"crop": np.zeros((9, 9))}, r"crop is ndarray of shape .9, 9.: two whole numbers"),
        (SDXL, {"prompt_2": np.array(["a"])}, "prompt_2 array.*: a string or a list of strings"),
        (LCM, {"crop": np.array([0, 0])}, r"crop array\(.0, 0.\): tiny-lcm takes none"),
        (SDXL, {"negative_crop": (-1, 0)}, "negative_crop .-1, 0.: two whole numbers from 0 on"),
        (SDXL, {"aesthetic_score": 5.0}, "aesthetic_score 5.0: tiny-sdxl takes none, SDXL's refiner does"),
        (REFINER, {"aesthetic_score": float("nan")}, "aesthetic_score nan: a finite number"),
        (SDXL, {"zero_negative": 1}, "zero_negative 1: True, False or None"),
        (SDXL, {"refiner": "xl"}, "refiner str: a model, as sdjax.load gives it, expected"),
        (SDXL, {"refiner_start": 0.5}, "refiner_start: needs a refiner"),
        (SDXL, {"refiner": model(REFINER), "refiner_start": 2}, "refiner_start 2: a number from 0 to 1"),
        (SDXL, {"refiner": model(SDXL_INPAINT)}, "refiner tiny-sdxl-inpaint: takes a mask as well"),
        (LCM, {"original_size": (8, 8)}, "original_size .8, 8.: tiny-lcm takes none, SDXL does"),
        (LCM, {"zero_negative": True}, "zero_negative True: tiny-lcm takes none"),
    ],
)
def test_refusals(config, options, match):
    with pytest.raises(SdjaxError, match=match):
        draw(model(config), **options)


def test_refiners_that_do_not_go_together():
    sd = model(SDXL)
    latents = replace(model(REFINER), config=replace(REFINER, vae=replace(REFINER.vae, scaling=0.5)))
    with pytest.raises(SdjaxError, match="refiner tiny-refiner: its latents are not those of tiny-sdxl"):
        draw(sd, refiner=latents)
    schedule = replace(model(REFINER), config=replace(REFINER, schedule=ScheduleConfig(beta_end=0.02)))
    with pytest.raises(SdjaxError, match="refiner tiny-refiner: its noise schedule is not that of tiny-sdxl"):
        draw(sd, refiner=schedule)


# ---- distilled models


@pytest.mark.parametrize("config", [LCM, LCM_XL])
def test_a_unet_that_takes_the_scale_is_never_called_without_the_prompt(config, caplog):
    sd = model(config)
    options = {"sampler": "lcm"}
    with caplog.at_level(logging.WARNING, "sdjax"):
        got = draw(sd, **options)
        assert not caplog.messages
        np.testing.assert_array_equal(draw(sd, negative_prompt="x", **options), got)
    assert caplog.messages == [f"negative_prompt: has no effect, {config.name} is never called without the prompt"]
    np.testing.assert_array_equal(draw(sd, guidance_scale=8.5, **options), got)
    assert np.abs(draw(sd, guidance_scale=2.0, **options) - got).max() > 1e-6
    with pytest.raises(SdjaxError, match=f"AND composes prompts in guidance, which {config.name} has inside its UNet"):
        draw(sd, "a AND b", **options)


def test_every_step_has_its_scale():
    sd = model(LCM_XL)
    walk = draw(sd, output="trajectory", guidance_scale=[8.5, 8.5, 3.0, 3.0], sampler="lcm")
    cond = sdjax.encode_prompt(sd, "ab", original_size=(16, 16))
    for i, scale in ((0, 8.5), (3, 3.0)):
        x, sigma = walk.x[i], walk.sigma[i]
        np.testing.assert_allclose(walk.x0[i], sdjax.denoiser(sd, cond, None, scale)(x, sigma), rtol=1e-4, atol=1e-3)
    eps = sdjax.predict(sd, x, 259.0, cond, guidance_scale=3.0)  # 999, 739, 499, 259
    alpha = 1 / np.sqrt(1 + sigma**2)
    np.testing.assert_allclose(walk.x0[3], (x - alpha * sigma * eps) / alpha, rtol=1e-4, atol=1e-3)


def test_a_scale_for_another_unet_is_refused():
    sd = model(SDXL)
    with pytest.raises(SdjaxError, match=r"guidance_scale 3\.0: the UNet of tiny-sdxl takes none"):
        sdjax.predict(sd, np.zeros((1, 8, 8, 4), np.float32), 1.0, sdjax.encode_prompt(sd, "a"), guidance_scale=3.0)
    lcm = model(LCM)
    with pytest.raises(SdjaxError, match=r"guidance_scale has shape \[2\], should be \[1\] or one number"):
        cond = sdjax.encode_prompt(lcm, "a")
        sdjax.predict(lcm, np.zeros((1, 8, 8, 4), np.float32), 1.0, cond, guidance_scale=np.ones(2))


def test_a_distilled_model_says_what_it_is_made_for(caplog):
    turbo = replace(model(SDXL), config=replace(SDXL, few_steps=4, guidance_scale=1.0, spacing="trailing"))
    with caplog.at_level(logging.WARNING, "sdjax"):
        draw(turbo, sampler="euler_a")
        assert not caplog.messages
        draw(turbo, sampler="euler_a", steps=5, guidance_scale=0.0)
    assert caplog.messages == [
        "steps 5: tiny-sdxl is distilled for at most 4 steps",
        "guidance_scale 0: 1 is the prompt alone for tiny-sdxl, which model cards call 0.0",
    ]
    one = draw(turbo, sampler="euler_a", steps=1, output="trajectory")
    np.testing.assert_allclose(one.sigma, make_schedule(SDXL.schedule).sigmas[-1:], rtol=1e-6)  # t = 999
