"""The invisible watermark: bytes and pixels as the package has them (watermark_reference.py)."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image import watermark
from tests.image.watermark_reference import CONTENTS, FILE, pictures

REFERENCE = json.loads(FILE.read_text("utf-8"))


@pytest.mark.parametrize("name", pictures())
@pytest.mark.parametrize("content", CONTENTS)
def test_pixels_and_bytes_are_the_package_s(name, content):
    want = REFERENCE[f"{name}, {content}"]
    marked = watermark.embed(Image.fromarray(pictures()[name]), content.encode())
    assert hashlib.sha256(np.asarray(marked).tobytes()).hexdigest() == want["sha256"]
    assert watermark.decode(marked, len(content)).hex() == want["decoded"]


@pytest.mark.parametrize("name", ["noise", "grey"])
def test_it_comes_back(name):
    image = Image.fromarray(pictures()[name])
    marked = watermark.embed(image)
    assert watermark.decode(marked, len(watermark.V1)) == watermark.V1 == b"StableDiffusionV1"
    assert watermark.decode(watermark.embed(image, watermark.V2), 4) == b"SDV2" != watermark.decode(image, 4)
    assert watermark.embed(image.convert("RGBA")).mode == "RGB" and marked.size == image.size


def test_it_is_hardly_seen():
    image = Image.fromarray(pictures()["slopes"])
    change = np.abs(np.asarray(watermark.embed(image), int) - np.asarray(image, int))
    assert 0 < change.mean() < 3 and change[..., 0].max() <= 1  # red has no share in U


def test_refusals():
    small, image = Image.new("RGB", (255, 256)), Image.new("RGB", (300, 300))
    for call, match in [
        (lambda: watermark.embed(small), "image of 255 x 256 pixels: a watermark takes at least 65536"),
        (lambda: watermark.decode(small, 4), "image of 255 x 256"),
        (lambda: watermark.embed("a.png"), "image is str: a PIL image expected"),
        (lambda: watermark.embed(image, b""), "content b''"),
        (lambda: watermark.embed(image, "SDV2"), "content 'SDV2'"),
        (lambda: watermark.decode(image, 0), "length 0"),
        (lambda: watermark.decode(image, 2.0), r"length 2\.0"),
        (lambda: watermark.decode(image, 10000), "has 1369 blocks, 80000 are needed"),
    ]:
        with pytest.raises(SdjaxError, match=match):
            call()
