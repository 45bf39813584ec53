"""What a new user meets: own samplers, a negative prompt for each, hires' own steps, lines about compiling, reprs."""

import logging

import numpy as np
import pytest

import sdjax
from sdjax.tasks import remarks
from tests.kinds import XL, model
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIONS = {"steps": 2, "sampler": "euler", "guidance_scale": 3.0, "output": "latents"}


def draw(*args, **options):
    return sdjax.txt2img(tiny(), *args, **OPTIONS | options)


def test_a_negative_prompt_for_each():
    """Of one chunk and of two, beside prompts of one and two: each picture as it is alone."""
    prompts, negatives = ["ab", "hippopotamus", "cd"], ["", "long enough for two", "ef"]
    together = draw(prompts, negative_prompt=negatives, seed=5)
    for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        np.testing.assert_allclose(together[i], draw(prompt, negative_prompt=negative, seed=5 + i)[0], atol=2e-5)
    assert np.abs(draw("ab", negative_prompt="ef", seed=5)[0] - together[0]).max() > 1e-4
    twice = draw(prompts[:2], negative_prompt=negatives[:2], num_images=2, seed=5)
    alone = draw("hippopotamus", negative_prompt=negatives[1], seed=8)
    np.testing.assert_allclose(twice[3], alone[0], atol=2e-5)
    np.testing.assert_array_equal(draw("ab", negative_prompt=["ef"]), draw("ab", negative_prompt="ef"))


def test_a_negative_prompt_for_each_of_sdxl():
    """An empty one means zeros for its own picture alone."""
    sd = model(XL)
    one = lambda *args, **options: sdjax.txt2img(sd, *args, **OPTIONS | options)
    together = one(["ab", "cd"], negative_prompt=["", "ef"], seed=5)
    for i, (prompt, negative) in enumerate([("ab", ""), ("cd", "ef")]):
        np.testing.assert_allclose(
            together[i], one(prompt, negative_prompt=negative, seed=5 + i)[0], rtol=1e-4, atol=1e-4
        )
    assert np.abs(one("ab", negative_prompt="ef", seed=5)[0] - together[0]).max() > 1e-2


@pytest.mark.parametrize(
    "negatives, message",
    [
        (["a"] * 3, "negative_prompt of 3: a string for each of 2"),
        (["a", 2], "negative_prompt of 2: a string for each"),
    ],
)
def test_negatives_that_do_not_fit(negatives, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        draw(["ab", "cd"], negative_prompt=negatives)


def test_a_sampler_of_one_s_own():
    """Wherever a name goes; in a picture's text it has its own name."""
    own = sdjax.samplers["euler"]._replace(name="mine", label="")
    np.testing.assert_array_equal(draw("ab", sampler=own), draw("ab"))
    own = sdjax.samplers["heun"]._replace(name="mine", label="")
    picture = np.zeros((16, 16, 3), np.float32)
    for task in (
        lambda sampler: sdjax.img2img(tiny(), "ab", picture, **OPTIONS | {"sampler": sampler}),
        lambda sampler: sdjax.hires(tiny(), "ab", **OPTIONS | {"sampler": sampler}),
        lambda sampler: sdjax.inpaint(tiny(), "ab", picture, np.ones((16, 16)), **OPTIONS | {"sampler": sampler}),
    ):
        np.testing.assert_array_equal(task(own), task("heun"))
    text = sdjax.pictures.describe({"prompt": "ab", "sampler": own, "guidance_scale": 1.0}, 0, (16, 16), "tiny")
    assert "Sampler: mine" in text
    with pytest.raises(sdjax.SdjaxError, match=r"sampler 'eulr': unknown, .*; did you mean euler\?"):
        draw("ab", sampler="eulr")


def test_hires_with_steps_of_its_own():
    calls = []
    again = {"progress": lambda *call: calls.append(call), "scale": 1.5, "strength": 1.0}
    large = sdjax.hires(tiny(), "ab", hires_steps=4, **OPTIONS | again)
    assert calls[-1] == (6, 6) and large.shape[1:3] == (12, 12)
    same = sdjax.hires(tiny(), "ab", hires_steps=2, scale=1.5, **OPTIONS)
    np.testing.assert_array_equal(same, sdjax.hires(tiny(), "ab", scale=1.5, **OPTIONS))
    with pytest.raises(sdjax.SdjaxError, match="hires_steps 0: a whole number from 1 to 1000, or None"):
        sdjax.hires(tiny(), "ab", hires_steps=0, **OPTIONS)


def test_a_line_before_a_new_shape_is_compiled(caplog):
    caplog.set_level(logging.INFO, "sdjax")
    said = lambda: [record.message for record in caplog.records if "compiling" in record.message]
    remarks.ANNOUNCED.clear()
    draw("ab")
    assert said() == ["tiny: compiling for 1 picture of 16 x 16 pixels"]
    draw("cd", seed=3, guidance_scale=1.0, steps=9, sampler="ddim")
    assert len(said()) == 1
    draw("cd", num_images=3)
    draw("cd", num_images=4)
    assert said()[1:] == ["tiny: compiling for 4 pictures at once of 16 x 16 pixels"], "padded to a power of two"


def test_one_line_each(tmp_path):
    said = repr(tiny())
    assert said.startswith("<StableDiffusion tiny: 16 px, text ") and "computes in float32>" in said
    assert "\n" not in said and len(said) < 200
    sdjax.save_program(tiny(), tmp_path / "a.sdjax", steps=2)
    assert repr(sdjax.load_program(tmp_path / "a.sdjax")) == (
        f"<Program {tmp_path / 'a.sdjax'}: 1 x 16 x 16 px, 2 steps, tiny in float32>"
    )


@pytest.mark.parametrize("name", ["fp16", "half"])
def test_other_names_of_dtypes(name):
    from dataclasses import replace

    assert replace(tiny(), dtype=name).dtype.name == "float16"


def test_a_cond_draws_or_is_refused():
    cond = sdjax.encode_prompt(tiny(), ["ab"])
    np.testing.assert_allclose(draw(cond), draw("ab"), atol=2e-5)
    np.testing.assert_allclose(sdjax.hires(tiny(), cond, **OPTIONS), sdjax.hires(tiny(), "ab", **OPTIONS), atol=1e-4)
    for wrong in (cond.context, {"context": cond.context}, 3):
        with pytest.raises(sdjax.SdjaxError, match=r"^prompt .*a Cond$"):
            draw(wrong)
