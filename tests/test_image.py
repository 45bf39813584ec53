import numpy as np
import pytest
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image import contact_sheet, pil_to_pixels, pixels_to_pil, save_png


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
