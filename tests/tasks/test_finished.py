"""What is done is given at once, and a walk that begins late says so."""

import logging

import numpy as np
import pytest

import sdjax
from sdjax.devices import placement
from sdjax.tasks import remarks
from tests.kinds import LAYOUT, model
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile", "nothing_said")


@pytest.fixture
def nothing_said():
    """As in a new process."""
    remarks.say_once.cache_clear()


def test_pictures_are_given_as_they_are_done(monkeypatch):
    monkeypatch.setattr(placement, "POSITIONS", 2 * 64)  # two pictures of 8 x 8 at once
    sd, found = tiny(), {}

    def finished(numbers, images):
        assert len(numbers) == len(images) and not set(numbers) & set(found)
        found.update(zip(numbers, images, strict=True))
        if len(found) >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdjax.txt2img(sd, "ab", steps=2, sampler="euler", num_images=5, finished=finished)
    assert sorted(found) == [0, 1, 2, 3]
    whole = sdjax.txt2img(sd, "ab", steps=2, sampler="euler", num_images=5)
    for i, image in found.items():
        np.testing.assert_array_equal(np.asarray(image), np.asarray(whole[i]))


def test_hires_and_inpaint_give_what_they_return():
    sd, found = tiny(), []
    take = lambda numbers, pixels: found.append((numbers, pixels))
    options = {"steps": 2, "sampler": "euler", "output": "pixels", "finished": take}
    mask = np.zeros((16, 16), np.float32)
    mask[:8] = 1
    picture = np.full((16, 16, 3), 0.5, np.float32)
    draws = (
        lambda: sdjax.hires(sd, "ab", scale=1.0, **options),
        lambda: sdjax.inpaint(sd, "ab", picture, mask, feather=2, **options),
    )
    for draw in draws:
        want = draw()
        ((numbers, pixels),) = found
        assert numbers == [0]
        np.testing.assert_array_equal(pixels, want)
        found.clear()


@pytest.mark.parametrize(
    "options, begins",
    [
        ({"sampler": "ddim", "steps": 3}, 667),
        ({"sampler": "plms", "steps": 3}, 667),
        ({"sampler": "ddpm", "steps": 8}, 876),
        ({"sampler": "euler", "steps": 3, "spacing": "leading"}, 667),
        ({"sampler": "ddim", "steps": 3, "spacing": "trailing"}, None),
        ({"sampler": "ddim", "steps": 10}, None),
        ({"sampler": "euler", "steps": 1}, None),
        ({"sampler": "dpmpp_2m", "steps": 3, "sigmas": "karras"}, None),
    ],
)
def test_a_walk_that_begins_late_says_so(options, begins, caplog):
    with caplog.at_level(logging.WARNING, "sdjax"):
        for _ in range(2):
            sdjax.txt2img(tiny(), "ab", output="latents", **options)
        picture = np.zeros((16, 16, 3), np.float32)
        sdjax.img2img(tiny(), "ab", picture, strength=0.5, output="latents", **options | {"steps": 8})  # begins later
    lines = [line for line in caplog.messages if "begins at t" in line]
    assert len(lines) == (begins is not None)
    if begins:
        said = f"steps {options['steps']}: the walk of {options['sampler']} begins at t = {begins} of 999"
        assert lines[0].startswith(said) and lines[0].endswith("(--spacing trailing) begins at 999")


def test_models_without_text_say_it_too(caplog):
    sd = model(LAYOUT)
    with caplog.at_level(logging.WARNING, "sdjax"):
        sdjax.txt2img(sd, sdjax.encode_layout(sd, [[]]), steps=2, output="latents", guidance_scale=1.0)
    assert "begins at t = 501 of 999" in caplog.messages[0]
