"""Sizes: any multiple of the VAE's factor is drawn; what a picture's own size costs is told."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.families.sd import SD15
from sdjax.model import functions
from sdjax.tasks import remarks
from tests.kinds import MAP, model
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIONS = {"steps": 2, "sampler": "euler", "guidance_scale": 2.0}


@pytest.fixture(autouse=True)
def nothing_said():
    remarks.say_once.cache_clear()


@pytest.mark.parametrize("height, width", [(18, 22), (2, 2), (10, 16)])
def test_text_to_image(height, width):
    """The tiny model's VAE halves, and its UNet halves again: 18 pixels are 9 latents, then 5."""
    draw = lambda **more: sdjax.txt2img(tiny(), "ab", height=height, width=width, output="pixels", **OPTIONS, **more)
    both = draw(num_images=2)
    assert both.shape == (2, height, width, 3) and np.isfinite(both).all()
    np.testing.assert_allclose(both[1:], draw(seed=1), atol=2e-5)
    assert draw(progress=lambda *_: None).shape == (1, height, width, 3)


def test_from_a_picture():
    """A size that is asked for is taken, an array's too; a picture's own is rounded down to what the UNet divides."""
    sd, picture = tiny(), Image.new("RGB", (23, 19), "red")
    assert sdjax.img2img(sd, "ab", picture, **OPTIONS)[0].size == (20, 16)
    assert sdjax.img2img(sd, "ab", picture, height=18, width=22, **OPTIONS)[0].size == (22, 18)
    array = np.zeros((1, 18, 22, 3), np.float32)
    assert sdjax.img2img(sd, "ab", array, **OPTIONS)[0].size == (22, 18)
    mask = np.ones((18, 22))
    assert sdjax.inpaint(sd, "ab", array, mask, **OPTIONS)[0].size == (22, 18)
    assert sdjax.outpaint(sd, "ab", array, right=4, **OPTIONS)[0].size == (26, 18)
    assert sdjax.encode_mask(tiny(9), array, mask).concat.shape == (1, 9, 11, 5)
    with pytest.raises(sdjax.SdjaxError, match="multiples of 2; PIL images are"):
        sdjax.img2img(sd, "ab", array[:, :17], **OPTIONS)


def test_hires():
    """Sides are rounded to what the first walk's are multiples of."""
    size = lambda side, scale: sdjax.hires(tiny(), "ab", scale=scale, height=side, width=side, **OPTIONS)[0].height
    assert size(18, 1.5) == 28 and size(16, 1.4) == 24 and size(18, 1) == 18


def test_the_model_s_own_sizes_compile_what_they_did():
    """No branch of the program depends on how a size was given: one program for a shape."""
    sd = tiny()
    unet = lambda x, t: functions.unet_output(sd.params["unet"], x, t, np.zeros((1, 8, 16), np.float32), sd.config.unet)
    text = str(jax.make_jaxpr(unet)(np.zeros((1, 8, 8, 4), np.float32), np.zeros(1, np.float32)))
    odd = str(jax.make_jaxpr(unet)(np.zeros((1, 9, 8, 4), np.float32), np.zeros(1, np.float32)))
    cut = "f32[1,9,8,16] = slice"
    assert cut not in text and cut in odd


def test_unets_whose_blocks_resize_take_whole_cells():
    config = replace(tiny().config, unet=replace(tiny().config.unet, updown=True))
    assert (config.unit, config.multiple, tiny().config.unit) == (4, 4, 2)
    with pytest.raises(sdjax.SdjaxError, match="height 18: a positive multiple of 4 pixels for tiny"):
        config.check_side("height", 18)


def test_maps_of_any_size():
    sd = model(MAP)
    ids = np.zeros((1, 18, 22), int)
    assert sdjax.txt2img(sd, sdjax.encode_map(sd, ids), steps=2, guidance_scale=1.0)[0].size == (22, 18)


def test_a_large_picture_is_told_with_its_cost(caplog):
    sd, large = tiny(), Image.new("RGB", (64, 36), "red")
    sdjax.img2img(sd, "ab", large, **OPTIONS)
    assert "image: 64 x 36 pixels are drawn, 9 times the area of tiny's own 16 x 16, and a step costs" in caplog.text
    caplog.clear()
    sdjax.img2img(sd, "ab", large, height=36, width=64, **OPTIONS)
    sdjax.img2img(sd, "ab", Image.new("RGB", (32, 32)), **OPTIONS)
    assert "are drawn" not in caplog.text, "a size that is asked for, or four times the area"


def test_what_a_call_costs():
    """0.80 TFLOP for a 512 px picture of SD 1.5, as published (FACTS.md); attention makes it grow faster than area."""
    own = remarks.unet_work(SD15, (512, 512))
    assert abs(own / 0.8e12 - 1) < 0.02 and remarks.unet_work(SD15, (1024, 1024)) > 5 * own


def test_guidance_of_nothing_is_told(caplog):
    sd = tiny()
    sdjax.txt2img(sd, "ab", steps=2, guidance_scale=0)
    assert "guidance_scale 0: what is asked for has no effect; 1 is the prompt alone" in caplog.text
    caplog.clear()
    sdjax.txt2img(sd, "ab", steps=2, sampler="euler", guidance_scale=[0, 3.0])
    sdjax.txt2img(sd, "ab", steps=2, sampler="euler", guidance_scale=0.5)
    assert not caplog.text
