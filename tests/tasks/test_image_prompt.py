"""Tasks with IP-Adapters: what is the same, what is refused, and that nothing is compiled again."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.errors import SdjaxError
from sdjax.model.control import Control
from sdjax.networks.control.config import ControlConfig
from tests import kinds
from tests.image_prompts import image_prompt
from tests.narrow import random_params
from tests.tasks.test_generate import compilations
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

PICTURE = Image.fromarray((np.random.default_rng(0).uniform(size=(20, 27, 3)) * 255).astype(np.uint8))
OTHER = Image.fromarray(255 - np.asarray(PICTURE))


def adapter(plus: bool = False, seed: int = 0):
    return image_prompt(tiny(), plus, seed)


def make(task=sdjax.txt2img, *arguments, prompt="cat", **options) -> np.ndarray:
    settings = {"steps": 4, "guidance_scale": 3.0, "output": "latents", "seed": 1} | options
    return task(tiny(), prompt, *arguments, **settings)


def prompted(picture=PICTURE, plus=False, **options) -> np.ndarray:
    return make(image_prompt=(adapter(plus), picture), **options)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def test_what_is_the_same():
    plain, found = make(), prompted()
    assert apart(plain, found) > 1e-3 and apart(found, prompted(OTHER)) > 1e-4
    assert apart(plain, prompted(image_prompt_scale=0.0)) < 1e-5
    assert apart(found, prompted([PICTURE])) == 0
    assert apart(found, prompted([PICTURE, PICTURE])) < 1e-5, "the softmax of twice the same"
    assert apart(found, prompted([PICTURE, OTHER])) > 1e-5
    told = prompted(progress=lambda *_: None)
    assert apart(told, found) < 1e-4, "a row at a time"


def test_several_and_both_kinds():
    plus = prompted(plus=True)
    assert apart(plus, prompted(plus=True, image_prompt_scale=0.0)) > 1e-3 and apart(plus, prompted()) > 1e-3
    both = [(adapter(), PICTURE), (adapter(True), OTHER)]
    assert apart(prompted(), make(image_prompt=both, image_prompt_scale=[1.0, 0.0])) < 1e-5
    other = prompted(OTHER, True, image_prompt_scale=0.5)
    assert apart(other, make(image_prompt=both, image_prompt_scale=[0.0, 0.5])) < 1e-5


def test_pictures_of_all_kinds():
    """Centre squares; and one list for each image."""
    array = np.asarray(PICTURE)
    for same in (array, array[None], [array], PICTURE.convert("RGBA"), array.astype(np.float32) / 127.5 - 1):
        np.testing.assert_allclose(prompted(same), prompted(), atol=1e-5)
    two = prompted([[PICTURE], [OTHER]], num_images=2)
    np.testing.assert_allclose(two[:1], prompted(), atol=1e-4)
    np.testing.assert_allclose(two[1:], prompted(OTHER, seed=2), atol=1e-4)
    same = prompted(num_images=2)
    np.testing.assert_allclose(same[1:], prompted(seed=2), atol=1e-4)


def test_prompts_and_sides():
    """Composed prompts, lists and guidance of 1 take image prompts as well."""
    composed = prompted(prompt="cat AND dog")
    assert apart(composed, prompted(prompt="cat AND dog", image_prompt_scale=0.0)) > 1e-3
    two = prompted(prompt=["cat", "dog"])
    np.testing.assert_allclose(two[:1], prompted(), atol=1e-4)
    assert apart(prompted(guidance_scale=1.0), prompted(guidance_scale=1.0, image_prompt_scale=0.0)) > 1e-3


def test_nothing_recompiles():
    both = {"image_prompt": [(adapter(), PICTURE), (adapter(True), [PICTURE, OTHER])]}
    others = [(adapter(False, 1), OTHER.resize((40, 60))), (adapter(True, 1), [OTHER, PICTURE])]
    make(**both)
    with compilations() as count:
        make(**both, image_prompt_scale=[0.3, 2.0])
        make(**both, image_prompt_scale=0.0, seed=5)
        make(image_prompt=others, guidance_scale=1.0, steps=3, sampler="heun")
        assert not count


def test_other_tasks():
    pixels = np.random.default_rng(2).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    for task, arguments in (
        (sdjax.img2img, (pixels,)),
        (sdjax.inpaint, (pixels, mask)),
        (sdjax.hires, (1.5,)),
        (sdjax.outpaint, (pixels, 4)),
    ):
        asked = {"image_prompt": (adapter(), PICTURE)}
        assert apart(make(task, *arguments, **asked), make(task, *arguments, **asked, image_prompt_scale=0.0)) > 1e-4


def test_beside_a_control():
    config = ControlConfig(tiny().config.unet, (4, 6))
    control = {
        "control": Control(config, jax.tree.map(lambda leaf: 4 * leaf, random_params(config))),
        "control_image": PICTURE,
    }
    assert apart(prompted(**control), prompted(**control, image_prompt_scale=0.0)) > 1e-3
    assert apart(prompted(), prompted(**control, control_scale=0.0)) < 1e-5 < apart(prompted(), prompted(**control))
    pixels = np.random.default_rng(2).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    outside = [make(sdjax.outpaint, pixels, 4, **control, control_scale=scale) for scale in (0.0, 1.0)]
    assert apart(*outside) > 1e-4, "a control on a larger canvas"


def test_models_of_sdxl_and_a_refiner():
    """The refiner walks without it."""
    sd, refiner = kinds.model(kinds.SDXL), kinds.model(kinds.REFINER)
    settings = {"steps": 4, "output": "trajectory", "refiner": refiner, "refiner_start": 0.5}
    asked = {"image_prompt": (image_prompt(sd), PICTURE)}
    plain, found = (sdjax.txt2img(sd, "cat", **settings, **asked, image_prompt_scale=scale) for scale in (0, 1))
    assert apart(plain.x0[0], found.x0[0]) > 1e-5 and apart(plain.latents, found.latents) > 1e-5
    with pytest.raises(SdjaxError, match="image_prompt: is for a model with a context of width 16, tiny-sdxl has 28"):
        sdjax.txt2img(sd, "cat", image_prompt=(adapter(), PICTURE))


def test_predict():
    sd, rng = tiny(), np.random.default_rng(0)
    x, cond = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), sdjax.encode_prompt(sd, ["cat", "dog"])
    plain = sdjax.predict(sd, x, 500, cond)
    asked = {"image_prompt": (adapter(), [[PICTURE], [OTHER]])}
    found = sdjax.predict(sd, x, 500, cond, **asked)
    assert apart(plain, found) > 1e-3
    np.testing.assert_allclose(sdjax.predict(sd, x, 500, cond, **asked, image_prompt_scale=0), plain, atol=1e-6)
    assert apart(sdjax.predict(sd, x, 500, cond, image_prompt=(adapter(), None)), plain) > 1e-4
    with pytest.raises(SdjaxError, match="image_prompt: pictures for 3 images, for one or 2 expected"):
        sdjax.predict(sd, x, 500, cond, image_prompt=(adapter(), [[PICTURE]] * 3))
    for scale in (0.5, [1.0]):
        with pytest.raises(SdjaxError, match=r"image_prompt_scale .*needs an image_prompt"):
            sdjax.predict(sd, x, 500, cond, image_prompt_scale=scale)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_prompt_scale": 0.5}, "image_prompt_scale 0.5: needs an image_prompt"),
        ({"image_prompt": []}, r"image_prompt \[\]: \(adapter, picture\) expected"),
        ({"image_prompt": "adapter.bin"}, r"image_prompt is str: \(adapter, picture\) expected"),
        ({"image_prompt": adapter}, "image_prompt is function"),
        ({"image_prompt": ("adapter.bin", PICTURE)}, "image_prompt is str"),
        ({"image_prompt": (adapter(), PICTURE, OTHER)}, r"image_prompt is \(ImagePrompt, Image, Image\)"),
        ({"image_prompt": (adapter(), "p.png")}, "image_prompt: image is str"),
        ({"image_prompt": (adapter(), [])}, "image_prompt: lists of 0 pictures"),
        ({"image_prompt": (adapter(), [[PICTURE], []])}, "image_prompt: lists of 1, 0 pictures"),
        ({"image_prompt": (adapter(), np.full((9, 9, 3), 9.0))}, r"image_prompt: image: pixels in \[-1, 1\]"),
        ({"image_prompt": (adapter(), [[PICTURE]] * 3)}, "pictures for 3 images, for one or 1"),
        ({"image_prompt": (adapter(), PICTURE), "image_prompt_scale": "x"}, "image_prompt_scale 'x': a number"),
        ({"image_prompt": (adapter(), PICTURE), "image_prompt_scale": [1, 2]}, "a number, or one for each of 1"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(options, said):
    with pytest.raises(SdjaxError, match=said) as refused:
        make(**options)
    assert "\n" not in str(refused.value)


def test_adapters_of_other_models_are_refused():
    config = adapter().config
    for changes, said in (
        ({"layers": (16, 16, 16)}, "is for 3 cross-attentions of 16 channels, tiny has 4 of 16"),
        ({"layers": (16, 16, 8, 16)}, "of 16, 8, 16 channels"),
        ({"context_dim": 12}, "a context of width 12"),
    ):
        with pytest.raises(SdjaxError, match=f"image_prompt: .*{said}"):
            make(image_prompt=(replace(adapter(), config=replace(config, **changes)), PICTURE))
    plain = kinds.model(kinds.PLAIN)
    with pytest.raises(SdjaxError, match="image_prompt: tiny-nothing takes none"):
        sdjax.txt2img(plain, None, image_prompt=(adapter(), PICTURE))
