"""What starts from a picture or looks on, with a narrow random model. Against diffusers: tests/parity/test_tasks.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.tasks import engine
from sdjax.tasks.image_to_image import img2img, inpaint, outpaint
from sdjax.tasks.text_to_image import hires, txt2img
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")
PIXELS = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))
TWO = ["cat", "dog"]
MASK = np.zeros((16, 16), bool)
MASK[3:11, 5:16] = True


def change(image=PIXELS, prompt="cat", steps=4, output="latents", **options):
    return img2img(tiny(), prompt, image, steps=steps, output=output, **options)


def paint(image=PIXELS, mask=MASK, prompt="cat", steps=4, output="pixels", channels=4, **options):
    return inpaint(tiny(channels), prompt, image, mask, steps=steps, output=output, **options)


def test_img2img_outputs_and_sizes():
    pixels = change(output="pixels", seed=3)
    assert pixels.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(change(PIXELS[None], output="pixels", seed=3), pixels)
    np.testing.assert_array_equal(
        change(PICTURE.resize((27, 21)), width=16, height=16),
        change(PICTURE.resize((27, 21)).resize((16, 16), Image.Resampling.LANCZOS)),
    )


def test_little_strength_changes_little():
    x0 = np.asarray(sdjax.encode(tiny(), PIXELS[None]))
    far = [np.abs(change(strength=s, steps=100, guidance_scale=1.0) - x0).mean() for s in (0.01, 0.2, 1.0)]
    assert far[0] < 0.1 * far[2] and far[0] < far[1] < far[2]


def test_latents_are_an_image_too():
    x0 = np.asarray(sdjax.encode(tiny(), PIXELS[None]))
    np.testing.assert_allclose(change(x0, seed=5), change(seed=5), atol=1e-4)


def test_one_image_for_all_prompts_or_one_each():
    two = np.stack([PIXELS, PIXELS[::-1]])
    np.testing.assert_allclose(change(two, ["cat", "dog"], seed=3)[1], change(two[1], "dog", seed=4)[0], atol=1e-4)
    np.testing.assert_allclose(change(prompt=["cat", "dog"], seed=3)[1], change(prompt="dog", seed=4)[0], atol=1e-4)
    np.testing.assert_allclose(change(two, "cat", seed=3)[1], change(two[1], seed=4)[0], atol=1e-4)
    each = engine.repeat_for(np.arange(2), 4), engine.repeat_for(np.arange(1), 4), engine.repeat_for(np.arange(4), 4)
    assert [a.tolist() for a in each] == [[0, 0, 1, 1], [0] * 4, [0, 1, 2, 3]], "num_images of the first, then the next"


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


def test_masks_of_any_size_and_one_each():
    np.testing.assert_array_equal(paint(mask=Image.fromarray(MASK).resize((160, 48), 0)), paint())
    np.testing.assert_array_equal(paint(mask=np.zeros((5, 5)))[0], PIXELS)
    two = paint(mask=np.stack([MASK, ~MASK]), seed=3)
    np.testing.assert_allclose(two, np.concatenate([paint(seed=3), paint(mask=~MASK, seed=4)]), atol=1e-4)


def test_known_region_of_latents_is_the_picture_s():
    x = paint(output="latents")
    x0 = np.asarray(sdjax.encode(tiny(), PIXELS[None]))
    keep = ~MASK[::2, ::2]
    np.testing.assert_array_equal(x[0][keep], x0[0][keep])


def test_progress_walks_to_the_same_end():
    calls = []
    half = {"strength": 0.5, "steps": 8, "num_images": 2}
    walked = change(**half, progress=lambda *call: calls.append(call))
    np.testing.assert_allclose(walked, change(**half), atol=1e-5)
    assert calls == [(n, 4) for n in (1, 2, 3, 4)]


def test_latents_are_the_noise_that_is_added():
    noise = np.asarray(jnp.stack([sdjax.diffusion.noise.initial_noise(np.uint32([9]), (8, 8, 4))[0]]))
    np.testing.assert_array_equal(change(latents=noise), change(seed=9))
    np.testing.assert_array_equal(change(latents=noise.tolist()), change(seed=9))
    np.testing.assert_array_equal(paint(latents=noise), paint(seed=9))


def test_outpainting_keeps_the_picture_where_it_is():
    sides = {"left": 4, "top": 8}
    pixels = outpaint(tiny(), "cat", PIXELS[:8, :12], **sides, steps=3, output="pixels")
    assert pixels.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(pixels[0, 8:, 4:], PIXELS[:8, :12])
    assert np.abs(pixels[0, :8]).std() > 0.05
    (image,) = outpaint(tiny(), "cat", PICTURE.crop((0, 0, 12, 8)), **sides, steps=3)
    np.testing.assert_array_equal(np.asarray(image)[8:, 4:], np.asarray(PICTURE)[:8, :12])


def test_hires():
    calls = []
    options = {"steps": 4, "output": "latents", "num_images": 2, "progress": lambda *call: calls.append(call)}
    large = hires(tiny(), "cat", 2.0, 0.5, seed=3, **options)
    assert large.shape == (2, 16, 16, 4) and calls == [(n, 6) for n in range(1, 7)]
    small = txt2img(tiny(), "cat", seed=3, **options)
    coarse = large.reshape(2, 8, 2, 8, 2, 4).mean((2, 4))
    assert np.corrcoef(coarse.ravel(), small.ravel())[0, 1] > 0.5, "it is not the same picture any more"
    other = hires(tiny(), "cat", 2.0, 0.5, "pixels", seed=3, **options)
    assert other.shape == large.shape and np.abs(other - large).max() > 1e-3
    uneven = hires(tiny(), "cat", 1.5, 0.5, height=16, width=12, steps=2, output="latents")
    assert uneven.shape == (1, 12, 8, 4) and np.isfinite(uneven).all()  # 8 x 6 latents: 12 x 9, of which 8 fit the UNet


def test_variations():
    make = lambda **options: txt2img(tiny(), "cat", steps=4, output="latents", sampler="euler_a", **options)[0]
    ends = make(seed=3), make(seed=8)
    for strength, end in ((0.0, 0), (1.0, 1)):
        np.testing.assert_array_equal(make(seed=3, variation_seed=8, variation_strength=strength), ends[end])
    far = [np.abs(make(seed=3, variation_seed=8, variation_strength=w) - ends[0]).mean() for w in (0.02, 0.2, 0.5)]
    assert 0 < far[0] < far[1] < far[2]
    mixed = {"variation_seed": 8, "variation_strength": 0.3}
    both = txt2img(tiny(), "cat", steps=4, output="latents", sampler="euler_a", seed=2, num_images=2, **mixed)
    np.testing.assert_allclose(both[1], make(seed=3, **mixed), atol=1e-4)


def test_previews():
    seen, calls = [], []
    options = {"steps": 5, "preview_every": 2, "preview": lambda *call: seen.append(call)}
    images = txt2img(tiny(), TWO, **options, progress=lambda *call: calls.append(call))
    assert [step for step, *_ in seen] == [2, 4] and calls == [(n, 5) for n in range(1, 6)]
    assert all(numbers == [0, 1] and len(pictures) == 2 for _, numbers, pictures in seen)
    walk = txt2img(tiny(), TWO, steps=5, output="trajectory")
    for picture, pixels in zip(seen[0][2], np.clip(sdjax.decode(tiny(), walk.x0[1]), -1, 1), strict=True):
        np.testing.assert_allclose(np.asarray(picture) / 127.5 - 1, pixels, atol=1.01 / 127.5)
    assert np.abs(np.asarray(seen[1][2][1], int) - np.asarray(images[1], int)).mean() < 20


@pytest.mark.parametrize("progress", [None, lambda step, total: None])
def test_trajectory(progress):
    walk = txt2img(tiny(), TWO, steps=5, sampler="euler", output="trajectory", progress=progress)
    assert walk.x.shape == walk.x0.shape == (5, 2, 8, 8, 4) and (np.diff(walk.sigma) < 0).all()
    latents = txt2img(tiny(), TWO, steps=5, sampler="euler", output="latents")
    np.testing.assert_allclose(walk.latents, latents, atol=1e-5)
    np.testing.assert_allclose(walk.x0[-1], latents, atol=1e-5)
    table = sdjax.diffusion.plan.plan("euler", sdjax.diffusion.schedule.make_schedule(tiny().config.schedule), 5)
    noise = sdjax.diffusion.noise.initial_noise(np.uint32([0, 1]), (8, 8, 4))
    np.testing.assert_allclose(walk.x[0], table.start * noise, atol=1e-6)


def test_guidance_of_one_s_own():
    """Called with x, x0 and the step, in the trace; what it returns is x0."""
    steps = []

    def nothing(x, x0, step):
        jax.debug.callback(lambda step: steps.append(int(step)), step)
        return 0.5 * x0

    x = txt2img(tiny(), TWO, steps=4, sampler="euler", guidance_fn=nothing, output="trajectory")
    plain = txt2img(tiny(), TWO, steps=4, sampler="euler", output="trajectory")
    np.testing.assert_allclose(x.x0[0], 0.5 * plain.x0[0], atol=1e-5)
    jax.effects_barrier()
    assert steps == [0, 1, 2, 3]


def test_guidance_scales_by_step_and_sigma():
    make = lambda **options: txt2img(tiny(), TWO, steps=4, output="trajectory", **options)
    low, high = make(guidance_scale=1.0), make(guidance_scale=9.0)
    mixed = make(guidance_scale=[1, 9, 9, 9])
    np.testing.assert_array_equal(mixed.x0[0], low.x0[0])
    assert np.abs(mixed.x0[1] - make(guidance_scale=lambda n: 1).x0[1]).max() > 1e-4
    np.testing.assert_array_equal(make(guidance_scale=9.0, guidance_interval=(0, high.sigma[1])).x0, mixed.x0)
    np.testing.assert_array_equal(make(guidance_scale=9.0, guidance_interval=(0, 99)).x0, high.x0)
    half = lambda scale: change(prompt=TWO, strength=0.5, guidance_scale=scale, output="trajectory").x0
    np.testing.assert_array_equal(half([1, 1, 9, 9]), half(9))
