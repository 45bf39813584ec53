"""Tasks that are given Conds in place of prompts: the same pictures, the same programs, and refusals by name."""

import numpy as np
import pytest

import sdjax
from sdjax.errors import SdjaxError
from sdjax.tasks import stages
from sdjax.types import Cond
from tests.tasks.test_generate import MASK, PICTURE
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

FEW = {"steps": 3, "output": "latents"}
encode = lambda prompts, **options: sdjax.encode_prompt(tiny(), prompts, **options)


def draw(prompt, **options):
    return sdjax.txt2img(tiny(), prompt, **FEW | options)


@pytest.mark.parametrize(
    "prompt, options",
    [
        ("cat", {}),
        (["cat", "dog"], {"num_images": 2, "seed": 3}),
        ("cat AND dog:0.5", {"guidance_scale": 3.0}),
        (["a" * 9, "b" * 9], {"sampler": "euler_a"}),  # two chunks
        ("(ca:1.3)t", {"guidance_scale": 1.0, "eta": 0.5}),
        ("cat", {"progress": lambda *_: None}),
    ],
)
def test_an_encoded_prompt_draws_what_its_text_draws(prompt, options):
    cond, given = encode(prompt), encode("dog")
    want = draw(prompt, negative_prompt="dog", **options)
    np.testing.assert_array_equal(draw(cond, negative_prompt="dog", **options), want)
    if cond.context.shape[-2] == given.context.shape[-2]:
        np.testing.assert_array_equal(draw(cond, negative_prompt=given, **options), want)
    if prompt == "cat":
        np.testing.assert_array_equal(draw(prompt, negative_prompt=given, **options), want)
        np.testing.assert_array_equal(draw(cond, **options), draw(prompt, **options))


def test_every_task_takes_conds():
    tasks = {
        "img2img": ([PICTURE], {"strength": 0.7}),
        "inpaint": ([PICTURE, MASK], {}),
        "outpaint": ([PICTURE], {"left": 8}),
        "hires": ([], {"scale": 2.0}),
    }
    for name, (arguments, options) in tasks.items():
        task = lambda prompt, negative, name=name, a=arguments, o=options: getattr(sdjax, name)(
            tiny(), prompt, *a, negative_prompt=negative, **FEW | o
        )
        np.testing.assert_array_equal(task(encode("cat"), encode("dog")), task("cat", "dog"), err_msg=name)


def test_each_image_may_have_a_negative_of_its_own():
    together = draw(encode(["cat", "dog"]), negative_prompt=encode(["dog", "cow"]), guidance_scale=3.0)
    for i, (prompt, negative) in enumerate([("cat", "dog"), ("dog", "cow")]):
        np.testing.assert_allclose(
            together[i], draw(prompt, negative_prompt=negative, guidance_scale=3.0, seed=i)[0], atol=1e-5
        )
    many = draw(encode(["cat", "dog"]), negative_prompt=encode(["dog", "cow"]), guidance_scale=3.0, num_images=2)
    np.testing.assert_allclose(many[0], together[0], atol=1e-5)
    np.testing.assert_allclose(many[2], draw("dog", negative_prompt="cow", guidance_scale=3.0, seed=2)[0], atol=1e-5)


def test_conds_compile_nothing_that_texts_have_compiled():
    draw("cat", seed=1)
    before = stages.walk._cache_size()
    draw(encode("dog"), seed=2)
    draw(encode("dog"), negative_prompt=encode("cat"), seed=3)
    assert stages.walk._cache_size() == before


def test_channels_beside_x():
    """What inpaint makes for a model with 9 channels, given by hand: the same walk, and the size is theirs."""
    sd = tiny(9)
    want = sdjax.inpaint(sd, "cat", PICTURE, MASK, seed=4, **FEW)
    mask = MASK[None, :, :, None].astype(np.float32)
    latents = sdjax.encode(sd, PICTURE[None] * (1 - mask))
    concat = np.concatenate([mask[:, ::2, ::2], latents], -1)
    cond = sdjax.encode_prompt(sd, "cat")._replace(concat=concat)
    np.testing.assert_allclose(sdjax.txt2img(sd, cond, seed=4, **FEW), want, atol=1e-5)
    x, t = np.ones((1, 8, 8, 4), np.float32), 500.0
    nine = sdjax.predict(sd, np.concatenate([x, concat], -1), t, cond._replace(concat=None))
    np.testing.assert_array_equal(sdjax.predict(sd, x, t, cond), nine)
    plain = sdjax.denoiser(sd, cond, sdjax.encode_prompt(sd, ""), 3.0)(x, np.float32(2.0))
    assert plain.shape == x.shape and np.isfinite(plain).all()
    wide = cond._replace(concat=np.tile(concat, (1, 1, 2, 1)))
    assert sdjax.txt2img(sd, wide, **FEW).shape == (1, 8, 16, 4)
    with pytest.raises(SdjaxError, match=r"width 16: the channels of prompt\.concat are of 32 pixels"):
        sdjax.txt2img(sd, wide, width=16, **FEW)
    with pytest.raises(SdjaxError, match="inpainting model"):
        sdjax.txt2img(sd, cond._replace(concat=None), **FEW)


C = np.zeros((1, 8, 16), np.float32)


@pytest.mark.parametrize(
    "cond, match",
    [
        (Cond(), r"prompt\.context has shape \[\], should be \[B, L, 16\]"),
        (Cond(C[..., :5]), r"prompt\.context has shape \[1, 8, 5\]"),
        (Cond(C[0]), r"prompt\.context has shape \[8, 16\]"),
        (Cond(C[:, None]), r"with a mix \[B, P\]"),
        (Cond(C[:, None], np.ones((1, 2))), r"prompt\.mix has shape \[1, 2\], should be \[1, 1\]"),
        (Cond(C, vector=np.zeros((1, 3))), r"prompt\.vector has shape \[1, 3\]: tiny takes none"),
        (Cond(C, concat=np.zeros((1, 8, 8, 5))), r"prompt\.concat has shape \[1, 8, 8, 5\]: tiny takes none"),
        (Cond(C * np.nan), r"prompt\.context has NaN"),
        (Cond(C[:0]), "prompt has fields of 0 images"),
        (Cond(np.zeros((1, 7, 16), np.float32)), "prompt: its context has 7 positions, the text of the other side"),
    ],
)
def test_conds_that_a_model_does_not_take(cond, match):
    with pytest.raises(SdjaxError, match=match):
        draw(cond)


def test_negatives_that_do_not_go_with_the_prompt():
    for negative, match in [
        (encode(["a", "b", "c"]), "negative_prompt is of 3 images, should be of 1 or 2"),
        (encode("a AND b"), r"negative_prompt\.mix"),
        (3, "negative_prompt 3: a string, a list of one for each prompt, or a Cond"),
        (None, "negative_prompt None: a string, a list of one for each prompt, or a Cond"),
    ]:
        with pytest.raises(SdjaxError, match=match):
            draw(["cat", "dog"], negative_prompt=negative)
    with pytest.raises(
        SdjaxError, match="negative_prompt: its context has 8 positions, the text of the other side takes 2"
    ):
        draw("a" * 9, negative_prompt=encode("a"))
    longer = draw("a", negative_prompt=encode("b" * 9))
    np.testing.assert_array_equal(longer, draw("a", negative_prompt="b" * 9))
