"""txt2img on a narrow model with random weights."""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from sdjax import generate, stages
from sdjax.errors import SdjaxError
from sdjax.generate import txt2img
from sdjax.model import initial_noise
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")


def make(prompt="cat", steps=3, output="latents", **options):
    return txt2img(tiny(), prompt, steps=steps, output=output, **options)


def test_outputs():
    pixels, (image,) = make(output="pixels"), make(output="pil")
    assert make().shape == (1, 8, 8, 4) and pixels.shape == (1, 16, 16, 3)
    assert np.abs(pixels).max() <= 1 and image.size == (16, 16)
    np.testing.assert_array_equal(np.asarray(image), np.round(127.5 * (pixels[0] + 1)).astype(np.uint8))
    assert make(output="pixels", height=8, width=24).shape == (1, 8, 24, 3)


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "plms"},
                                     {"sampler": "dpmpp_2m_sde", "sigmas": "karras"}])
def test_an_image_depends_on_its_seed_and_prompt_alone(options):
    together = make(["cat", "dog"], num_images=2, seed=7, **options)
    assert len(together) == 4
    for i, prompt in enumerate(["cat", "cat", "dog", "dog"]):
        np.testing.assert_allclose(together[i], make(prompt, seed=7 + i, **options)[0], atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.1
    assert np.abs(make("cat", seed=9, **options)[0] - together[2]).max() > 1e-3, "the prompt has no effect"


def test_an_image_does_not_depend_on_the_shapes_of_other_prompts():
    """One chunk of six letters, two chunks, composed: three walks."""
    calls, prompts = [], ["cat", "hippopotamus", "cat AND dog:0.5"]
    options = {"steps": 2, "progress": lambda *call: calls.append(call)}
    together = make(prompts, seed=7, **options)
    assert calls == [(n, 6) for n in range(1, 7)]
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(together[i], make(prompt, seed=7 + i, **options)[0], atol=1e-4)
    np.testing.assert_allclose(make("cat:0.5 AND cat:0.5", seed=7, **options)[0], together[0], atol=1e-4)
    assert np.abs(make("cat", seed=7, negative_prompt="hippopotamus", **options)[0] - together[0]).max() > 1e-3
    with pytest.raises(SdjaxError, match="clip_skip 2"):
        make(clip_skip=2)


def test_chunks_do_not_show(monkeypatch):
    whole = make(num_images=4)
    monkeypatch.setattr(generate, "POSITIONS", 3 * 64)
    assert [generate.chunk_size(count, 64)[0] for count in (1, 3, 4, 5, 7)] == [1, 3, 2, 3, 3]
    np.testing.assert_allclose(make(num_images=4), whole, atol=1e-4)
    np.testing.assert_allclose(make(num_images=2, seed=2), whole[2:], atol=1e-4)


def test_progress_walks_to_the_same_end():
    calls = []
    x = make(sampler="plms", num_images=2, progress=lambda *call: calls.append(call))
    np.testing.assert_allclose(x, make(sampler="plms", num_images=2), atol=1e-5)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_latents_replace_the_seed_s_noise():
    noise = np.asarray(initial_noise(np.uint32([3]), (8, 8, 4)))
    np.testing.assert_array_equal(noise[0], jax.random.normal(jax.random.key(3), (8, 8, 4)))
    np.testing.assert_array_equal(make(latents=noise, seed=0), make(seed=3))


def test_guidance():
    conditional = make(guidance_scale=1.0)
    np.testing.assert_allclose(make(guidance_scale=1.0, negative_prompt="dog"), conditional, atol=1e-6)
    np.testing.assert_allclose(make(guidance_scale=9.0, negative_prompt="cat"), conditional, atol=1e-4)
    np.testing.assert_allclose(make(guidance_scale=0.0, negative_prompt="cat", prompt="dog"), conditional, atol=1e-4)
    assert np.abs(make(guidance_scale=9.0) - conditional).max() > 1e-3


def test_only_shapes_recompile():
    make()
    before = stages.walk._cache_size()
    make("dog", steps=16, guidance_scale=2.0, eta=0.3, seed=2**32 - 1, negative_prompt="x")
    make(sampler="plms", steps=5)
    make(sampler="euler_a", steps=9, sigmas="karras")
    make(sampler="heun", steps=8, spacing="trailing")
    assert stages.walk._cache_size() == before


@pytest.mark.parametrize("options, message", [
    ({"steps": 0}, "steps 0"), ({"steps": 1001}, "steps 1001"), ({"steps": 2.0}, "steps 2.0"),
    ({"sampler": "eular"}, "ddim, plms"), ({"sampler": "plms", "eta": 1.0}, "eta"),
    ({"sigmas": "karras"}, "sigmas 'karras': not for sampler ddim"), ({"spacing": "even"}, "spacing 'even'"),
    ({"height": 15}, "height 15: a positive multiple of 4"), ({"width": 0}, "width 0"),
    ({"output": "jpg"}, "pil, pixels, latents"),
    ({"guidance_scale": float("nan")}, "guidance_scale nan"), ({"guidance_scale": "7"}, "guidance_scale"),
    ({"latents": np.zeros((1, 4, 4, 4))}, r"latents of shape \(1, 4, 4, 4\): \(1, 8, 8, 4\)"),
    ({"prompt": []}, "prompt"), ({"prompt": [1]}, "prompt"), ({"prompt": None}, "prompt"),
    ({"negative_prompt": None}, "negative_prompt"),
    ({"num_images": 0}, "num_images 0"), ({"seed": -1}, "seed -1"), ({"seed": 2**32 - 1, "num_images": 2}, "seed"),
    ({"seed": 1.5}, "seed 1.5")])
def test_refusals_name_the_argument(options, message):
    with pytest.raises(SdjaxError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_an_inpainting_model_is_refused():
    with pytest.raises(SdjaxError, match="inpaint"):
        txt2img(tiny(channels=9), "cat")


def test_four_devices_make_the_same_images():
    script = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)
from tests.test_generate import make
np.save(sys.argv[1], make(num_images=4, eta=1.0, output="pixels"))
"""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=root)
        found = np.load(path)
    np.testing.assert_allclose(found, make(num_images=4, eta=1.0, output="pixels"), atol=1 / 255)
