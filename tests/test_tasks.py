"""img2img and inpaint on a narrow model with random weights. Against diffusers: tests/parity/test_tasks.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.generate import img2img, inpaint
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
PIXELS = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))
MASK = np.zeros((16, 16), bool)
MASK[3:11, 5:16] = True


def change(image=PIXELS, prompt="cat", steps=4, output="latents", **options):
    return img2img(tiny(), prompt, image, steps=steps, output=output, **options)


def paint(image=PIXELS, mask=MASK, prompt="cat", steps=4, output="pixels", channels=4, **options):
    return inpaint(tiny(channels), prompt, image, mask, steps=steps, output=output, **options)


def test_img2img_outputs_and_sizes():
    assert change(output="pixels").shape == (1, 16, 16, 3)
    assert change(Image.new("RGB", (27, 21)), output="pil")[0].size == (24, 20), "floored to a multiple of 4"
    assert change(Image.new("RGB", (27, 21)), width=8, output="pil")[0].size == (8, 20)
    same = change(output="pixels", seed=3)
    np.testing.assert_array_equal(change(PIXELS[None], output="pixels", seed=3), same)


def test_little_strength_changes_little():
    x0 = np.asarray(sdjax.encode(tiny(), PIXELS[None]))
    far = [np.abs(change(strength=s, steps=100, guidance_scale=1.0) - x0).mean() for s in (0.01, 0.2, 1.0)]
    assert far[0] < 0.1 * far[2] and far[0] < far[1] < far[2]


def test_latents_are_an_image_too():
    x0 = np.asarray(sdjax.encode(tiny(), PIXELS[None]))
    np.testing.assert_allclose(change(x0, seed=5), change(seed=5), atol=1e-4)


def test_one_image_for_all_prompts_or_one_each():
    two = np.stack([PIXELS, PIXELS[::-1]])
    both = change(two, ["cat", "dog"], num_images=2, seed=3)
    assert both.shape == (4, 8, 8, 4)
    np.testing.assert_allclose(both[3], change(two[1], "dog", seed=6)[0], atol=1e-4)
    np.testing.assert_allclose(change(prompt=["cat", "dog"], seed=3)[1], change(prompt="dog", seed=4)[0], atol=1e-4)
    np.testing.assert_allclose(change(two, "cat", seed=3)[1], change(two[1], seed=4)[0], atol=1e-4)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("options", [{}, {"strength": 0.6, "sampler": "euler_a"}, {"sampler": "plms", "feather": 2}])
def test_pixels_outside_the_mask_are_the_input_s(channels, options):
    painted = paint(channels=channels, **options)
    np.testing.assert_array_equal(painted[0][~MASK], PIXELS[~MASK])
    assert np.abs(painted[0][MASK] - PIXELS[MASK]).mean() > 0.05
    (image,) = paint(PICTURE, channels=channels, output="pil", **options)
    np.testing.assert_array_equal(np.asarray(image)[~MASK], np.asarray(PICTURE)[~MASK])


@pytest.mark.parametrize("channels", [4, 9])
def test_the_hole_is_filled_from_noise_and_surroundings_alone(channels):
    other = np.where(MASK[..., None], 0.5, PIXELS)
    hole = MASK & MASK[::2, ::2].repeat(2, 0).repeat(2, 1)
    painted, again = (paint(image, channels=channels, seed=2)[0] for image in (PIXELS, other))
    if channels == 9:
        np.testing.assert_allclose(painted, np.where(MASK[..., None], again, PIXELS), atol=1e-4)
    surrounding = paint(np.where(MASK[..., None], PIXELS, -PIXELS), channels=channels, seed=2)[0]
    assert np.abs(painted - surrounding)[hole].max() > 1e-3, "what is around has no effect"


def test_masks_of_any_form():
    painted = paint()
    for mask in (Image.fromarray(MASK), MASK[..., None], MASK[None].astype(np.float32), np.uint8(MASK) * 255,
                 MASK.repeat(3, 0).repeat(3, 1), Image.fromarray(np.uint8(MASK) * 200).resize((160, 160), 0)):
        np.testing.assert_array_equal(paint(mask=mask), painted)
    np.testing.assert_array_equal(paint(mask=np.zeros((5, 5)))[0], PIXELS)
    assert paint(mask=np.stack([MASK, ~MASK]), num_images=2).shape == (4, 16, 16, 3)


def test_known_region_of_latents_is_the_picture_s():
    x = paint(output="latents")
    x0 = np.asarray(sdjax.encode(tiny(), PIXELS[None]))
    keep = ~MASK[::2, ::2]
    np.testing.assert_array_equal(x[0][keep], x0[0][keep])


def test_progress_walks_to_the_same_end():
    calls = []
    progress = lambda *call: calls.append(call)
    half = {"strength": 0.5, "steps": 8}
    np.testing.assert_allclose(change(**half, progress=progress), change(**half), atol=1e-5)
    np.testing.assert_allclose(paint(progress=progress), paint(), atol=1e-5)
    assert calls == [(n, 4) for n in (1, 2, 3, 4)] * 2


def test_latents_are_the_noise_that_is_added():
    noise = np.asarray(jnp.stack([sdjax.model.initial_noise(np.uint32([9]), (8, 8, 4))[0]]))
    np.testing.assert_array_equal(change(latents=noise), change(seed=9))
    np.testing.assert_array_equal(paint(latents=noise), paint(seed=9))
