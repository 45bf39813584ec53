"""Arguments of the image tasks: how they are taken, and what is refused, in one line that says what would be right."""

import inspect
import re
from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.families.table import PRESETS
from sdjax.tasks.options import OPTIONS, TaskOptions
from sdjax.tasks.request import check, guidance_scales
from tests.tiny import CONFIG, tiny

PIXELS = np.zeros((16, 16, 3), np.float32)
MASK = np.ones((16, 16), bool)
NAN = float("nan")
ARGUMENTS = {
    "txt2img": {},
    "img2img": {"image": PIXELS},
    "inpaint": {"image": PIXELS, "mask": MASK},
    "outpaint": {"image": PIXELS, "left": 4},
    "hires": {},
}

SHARED = [  # refused by every task
    ({"prompt": []}, "prompt []: a string or a list of at least one"),
    ({"prompt": [1]}, "prompt [1]: a string or a list"),
    ({"prompt": None}, "prompt None: a string or a list"),
    ({"negative_prompt": None}, "negative_prompt None: a string"),
    ({"steps": 0}, "steps 0: a whole number from 1"),
    ({"steps": 1001}, "steps 1001: a whole number from 1 to 1000"),
    ({"steps": 10**20}, "steps 100000000000000000000: a whole number from 1 to 1000"),
    ({"steps": 2.0}, "steps 2.0: a whole number"),
    ({"steps": "20"}, "steps '20': a whole number"),
    ({"sampler": "eular"}, "sampler 'eular': unknown, one of ddim, plms, ddpm"),
    ({"sampler": ["ddim"]}, "sampler ['ddim']: unknown"),
    ({"sigmas": ["karras"]}, "sigmas ['karras']: one of"),
    ({"spacing": ["leading"]}, "spacing ['leading']: sampler ddim takes one of"),
    ({"sampler": "plms", "eta": 1.0}, "eta 1.0: sampler plms takes none, it must be 0"),
    ({"eta": 1.5}, "eta 1.5: a number from 0 to 1"),
    ({"sigmas": "karras"}, "must be 'default' (karras is for euler"),
    ({"sigmas": "Karras"}, "sigmas 'Karras': one of default, karras"),
    ({"spacing": "even"}, "spacing 'even': sampler ddim takes one of leading, trailing, linspace"),
    ({"guidance_scale": NAN}, "guidance_scale nan: a finite number"),
    ({"guidance_scale": "7"}, "guidance_scale '7'"),
    ({"guidance_scale": True}, "guidance_scale True"),
    ({"guidance_scale": [7.5] * 3}, "guidance_scale of 3 numbers: one, or one for each of 4 steps"),
    ({"guidance_scale": [1, 2, 3, NAN]}, "guidance_scale nan: a finite number, [steps] of them, a function"),
    ({"guidance_scale": lambda step: None}, "guidance_scale None: a finite number"),
    ({"guidance_rescale": 1.5}, "guidance_rescale 1.5: a number from 0 to 1"),
    ({"guidance_interval": (5, 1)}, "guidance_interval (5, 1): two sigmas (low, high), 0 <= low <= high"),
    ({"guidance_interval": 3.0}, "guidance_interval 3.0: two sigmas"),
    ({"guidance_fn": 3}, "guidance_fn 3: a function or None"),
    ({"progress": "yes"}, "progress 'yes': a function or None"),
    ({"preview": 1}, "preview 1: a function or None"),
    ({"preview_every": 0}, "preview_every 0: a whole number of steps"),
    ({"variation_strength": -0.1}, "variation_strength -0.1: a number from 0 to 1"),
    ({"variation_seed": -1}, "variation_seed -1: a whole number from 0 to 4294967295"),
    ({"seed": -1}, "seed -1: a whole number from 0 to 4294967295"),
    ({"seed": 1.5}, "seed 1.5: a whole number"),
    ({"seed": 2**32 - 1, "num_images": 2}, "seed 4294967295: a whole number from 0 to 4294967294 for 2 images"),
    ({"num_images": 2**31}, "num_images 2147483648: a whole number from 1 to 1048576"),
    ({"num_images": 0}, "num_images 0: a whole number from 1"),
    ({"num_images": True}, "num_images True: a whole"),
    ({"output": "jpg"}, "output 'jpg': one of pil, pixels, latents, trajectory"),
    ({"latents": np.zeros((1, 4, 4, 4))}, "latents of shape (1, 4, 4, 4): (1, "),
    ({"latents": 3}, "latents of shape (): "),
    ({"latents": "noise"}, "latents of shape (): "),
    ({"clip_skip": 9}, "clip_skip 9: a whole number from 1"),
    ({"syntax": "yaml"}, "'yaml'"),
    ({"stepz": 20}, "got an unexpected keyword argument 'stepz'; it takes sd, prompt"),
]
OWN = [
    ("txt2img", {"height": 15}, "height 15: a positive multiple of 2 pixels"),
    ("txt2img", {"width": 0}, "width 0"),
    ("hires", {"height": 0}, "height 0: a positive multiple of 2 pixels"),
    ("hires", {"scale": 0.5}, "scale 0.5: a number from 1 on"),
    ("hires", {"strength": 0}, "strength 0: a number above 0"),
    ("hires", {"upscale": "esrgan"}, "upscale 'esrgan': one of latents, pixels"),
    ("img2img", {"strength": 0.0}, "strength 0.0: a number above 0 and up to 1"),
    ("img2img", {"strength": 2}, "strength 2"),
    ("img2img", {"strength": None}, "strength None: a number above 0"),
    ("inpaint", {"strength": None}, "strength None"),
    ("hires", {"strength": None}, "strength None"),
    ("txt2img", {"sd": "emoji"}, "sd is str: a model, as sdjax.load gives it, expected"),
    ("img2img", {"image": np.zeros((16, 16, 4), np.float32)}, "image of shape (16, 16, 4): [H, W, 3] or"),
    ("inpaint", {"mask": np.zeros((16, 16, 3))}, "mask of shape (16, 16, 3): [H, W], [B, H, W] or"),
    ("img2img", {"strength": 0.1}, "strength 0.1: no step of 4 is left"),
    ("img2img", {"strength": "1"}, "strength '1'"),
    ("img2img", {"image": "a.png"}, "image is str: a PIL image, a list of them, or an array"),
    ("img2img", {"image": None}, "image is NoneType: a PIL image"),
    ("img2img", {"image": []}, "image is list: a PIL image"),
    ("img2img", {"image": np.zeros((16, 16, 3), np.uint8)}, "image is uint8: floating point in [-1, 1] expected"),
    ("img2img", {"image": PIXELS + 255}, "found 255 (of 0 .. 255 take x / 127.5 - 1)"),
    ("img2img", {"image": PIXELS * NAN}, "image: pixels in [-1, 1] expected, found nan"),
    ("img2img", {"image": PIXELS[..., 0]}, "image of shape (16, 16): [H, W, 3] or [B, H, W, 3] expected"),
    ("img2img", {"image": PIXELS[:15]}, "image of shape (15, 16, 3): 14 x 16 pixels expected, arrays are not resized"),
    ("img2img", {"image": PIXELS, "height": 24}, "24 x 16 pixels expected"),
    ("img2img", {"image": np.zeros((1, 8, 8, 4), np.float32), "width": 24}, "width 24: the latents of image (1, 8, 8,"),
    ("img2img", {"image": Image.new("RGB", (3, 99))}, "image of 3 x 99 pixels: at least 4 x 4 needed"),
    ("img2img", {"image": [Image.new("RGB", (16, 16)), Image.new("RGB", (8, 8))]}, "differ in size, give height and"),
    ("img2img", {"image": np.stack([PIXELS] * 3), "prompt": ["a", "b"]}, "2 prompts for 3 images, one or 3 expected"),
    ("inpaint", {"mask": None}, "mask is NoneType: a PIL image"),
    ("inpaint", {"mask": "m.png"}, "mask is str: a PIL image"),
    ("inpaint", {"mask": np.zeros(16)}, "mask of shape (16,): [H, W], [B, H, W] or [B, H, W, 1] expected"),
    (
        "inpaint",
        {"mask": np.full((16, 16), 255.0)},
        "mask: values from 0 (keep) to 1 (repaint), or whole numbers from 0 on, expected",
    ),
    ("inpaint", {"mask": np.full((16, 16), NAN)}, "mask: values from 0"),
    ("inpaint", {"mask": np.zeros((2, 16, 16)), "image": np.stack([PIXELS] * 3)}, "2 masks for 3 images, one or 3"),
    ("inpaint", {"image": np.zeros((1, 8, 8, 4), np.float32)}, "pixels [B, H, W, 3] expected, inpaint does"),
    ("inpaint", {"feather": -1}, "feather -1: a number of pixels from 0 on"),
    ("inpaint", {"strength": 0}, "strength 0"),
    ("outpaint", {"left": 0}, "left, right, top, bottom: at least one of them must be above 0"),
    ("outpaint", {"left": -4}, "left -4: a whole number of pixels from 0 on"),
    ("outpaint", {"top": 1.5}, "top 1.5: a whole"),
    ("outpaint", {"left": 3}, "right 0: the canvas would have 19 pixels, 1 make it a multiple of 2"),
    ("outpaint", {"height": 64}, "height 64: None, outpaint's canvas is the image and its sides"),
]


@pytest.mark.parametrize("task, options, message", [*((task, *case) for task in ARGUMENTS for case in SHARED), *OWN])
def test_refusals_say_in_one_line_what_would_be_right(task, options, message):
    with pytest.raises(sdjax.SdjaxError) as error:
        getattr(sdjax, task)(**{"sd": tiny(), "prompt": "cat", "steps": 4} | ARGUMENTS[task] | options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_models_that_a_task_is_not_for():
    for task in ("txt2img", "img2img", "hires"):
        with pytest.raises(sdjax.SdjaxError, match="an inpainting model"):
            getattr(sdjax, task)(tiny(channels=9), "cat", **ARGUMENTS[task])
    with pytest.raises(sdjax.SdjaxError, match="6 channels, 4 or 5 or 9 expected"):
        sdjax.inpaint(tiny(channels=6), "cat", PIXELS, MASK)
    with pytest.raises(sdjax.SdjaxError, match="its UNet takes 8 channels, 4 or 5 or 9 expected"):
        sdjax.txt2img(tiny(channels=8), "cat")


def test_every_task_shows_the_shared_options():
    shared = [field.name for field in fields(TaskOptions)]
    own = {
        "txt2img": [],
        "img2img": ["image", "strength"],
        "inpaint": ["image", "mask", "strength", "feather", "mask_cells"],
        "outpaint": ["image", "left", "right", "top", "bottom", "strength", "feather", "mask_cells"],
        "hires": ["scale", "strength", "upscale", "hires_steps"],
    }
    for task, names in own.items():
        signature = inspect.signature(getattr(sdjax, task))
        assert list(signature.parameters) == ["sd", "prompt", *names, *shared]
        assert signature.parameters["guidance_scale"].default is None
        assert all(re.search(rf"\b{name}\b", getattr(sdjax, task).__doc__) for name in [*names, *shared])
    assert inspect.signature(sdjax.img2img).parameters["strength"].default == 0.75


def test_guidance_scales():
    scales = lambda scale: guidance_scales(CONFIG, TaskOptions(steps=3, guidance_scale=scale)).tolist()
    assert scales(2) == [2, 2, 2] and scales([1, 2, 3]) == scales(np.arange(1, 4)) == [1, 2, 3]
    assert scales(lambda step: 10 - step) == [10, 9, 8] and scales(None) == [4, 4, 4]
    assert scales(jnp.arange(1, 4)) == scales(lambda step: jnp.float32(step + 1)) == [1, 2, 3]
    assert scales(jnp.float32(2)) == [2, 2, 2]
    assert [PRESETS[name].guidance_scale for name in ("sd15", "sd21-base", "sd21")] == [
        7.5,
        9.0,
        9.0,
    ]


def test_requests():
    request = check(CONFIG, ["a", "b"], TaskOptions(num_images=2, seed=5, height=8))
    assert request.prompts == ["a", "a", "b", "b"] and request.seeds.tolist() == [5, 6, 7, 8]
    assert request.shape == (4, 8, 4) and check(CONFIG, "a", TaskOptions(), 3).prompts == ["a"] * 3


def test_every_option_says_what_it_is():
    """The signature, the docstring, the command line and the text are made of one row."""
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names) == len({option.text or option.name for option in OPTIONS})
    for option in OPTIONS:
        assert option.help.endswith(".") and (option.check is None) == (not option.right)
        assert option.check is None or option.check(option.default)
        assert (option.text is None) == (option.read is None)
    assert list(inspect.signature(sdjax.txt2img).parameters)[2:] == names


def test_the_help_of_the_sampler_names_all_of_them():
    (sampler,) = (option for option in OPTIONS if option.name == "sampler")
    assert set(sdjax.samplers) <= set(re.findall(r"\w+", sampler.help))


@pytest.mark.parametrize("channels", [6, 7, 8])
@pytest.mark.parametrize("task", ARGUMENTS)
def test_a_model_that_no_task_takes_is_refused_by_every_task(task, channels):
    with pytest.raises(sdjax.SdjaxError, match=f"sd tiny: its UNet takes {channels} channels, 4 or 5 or 9 expected"):
        getattr(sdjax, task)(tiny(channels=channels), "cat", **ARGUMENTS[task])
