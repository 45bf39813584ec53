import numpy as np
import pytest
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image.masks import read_masks
from sdjax.image.pixels import pil_to_pixels, pixels_to_pil, read_images
from sdjax.image.png import save_png
from sdjax.image.sheets import contact_sheet


def test_pixels_round_and_clip():
    values = [-2.0, -1.0, -0.9961, 0.0, 1.0, 3.0]
    (image,) = pixels_to_pil(np.repeat(np.float32(values), 3).reshape(1, 1, 6, 3))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    with pytest.raises(SdjaxError, match="finite"):
        pixels_to_pil(np.full((1, 2, 2, 3), np.nan))


def test_round_trip_is_exact():
    array = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    (image,) = pixels_to_pil(pil_to_pixels(Image.fromarray(array[0])))
    np.testing.assert_array_equal(image, array[0])


def test_pil_to_pixels_sizes_and_transparency():
    image = Image.new("RGBA", (21, 13), (255, 0, 0, 0))
    pixels = pil_to_pixels(image, multiple=8)
    assert pixels.shape == (1, 8, 16, 3) and pixels.dtype == np.float32 and (pixels == 1).all()
    assert pil_to_pixels(image, size=(5, 7)).shape == (1, 5, 7, 3)
    with pytest.raises(SdjaxError, match="16 x 16"):
        pil_to_pixels(image, multiple=16)


def test_contact_sheet():
    sheet = contact_sheet([Image.new("RGB", (8, 6), "red")] * 5, gap=2)
    assert sheet.size == (3 * 10 + 2, 2 * 8 + 2)
    assert sheet.getpixel((2, 2)) == (255, 0, 0) and sheet.getpixel((25, 12)) == (255, 255, 255)


def test_png_with_a_text(tmp_path):
    path = save_png(Image.new("RGB", (2, 2)), tmp_path / "a.png", "a cat — ねこ\nSteps: 20")
    assert Image.open(path).text["parameters"] == "a cat — ねこ\nSteps: 20"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_pictures_that_tasks_start_from():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 27, 3), np.uint8))
    assert read_images(image, None, None, 4).shape == (1, 20, 24, 3), "floored to a multiple"
    assert read_images([image, image], None, 8, 4).shape == (2, 20, 8, 3)
    np.testing.assert_array_equal(read_images(image, 21, 27, 1), pil_to_pixels(image))
    pixels = np.float32(np.random.default_rng(0).uniform(-1.1, 1.1, (8, 12, 3)))
    np.testing.assert_array_equal(read_images(pixels, None, 12, 4)[0], pixels.clip(-1, 1))
    latents = 9 * pixels[None, ..., [0, 1, 2, 0]]
    np.testing.assert_array_equal(read_images(latents, None, None, 8), latents)


def test_a_file_that_is_cut_off_is_said(tmp_path):
    """Pillow opens it without a word, and finds out when its pixels are asked for."""
    path = save_png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)), tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-900])
    for read, name in [
        (lambda image: read_images(image, None, None, 8), "image"),
        (pil_to_pixels, "image"),
        (lambda image: read_masks([image], (32, 32)), "mask"),
    ]:
        with pytest.raises(SdjaxError, match=f"^{name}: not readable .image file is truncated"):
            read(Image.open(path))
