"""Masks: every mode and depth of a picture, or a line that says what is done."""

import numpy as np
import pytest
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image.masks import cells_of, feather_masks, read_masks

MASK = np.zeros((16, 16), bool)
MASK[3:11, 5:16] = True


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        np.uint8(MASK),
        Image.fromarray(np.uint8(MASK)),
        MASK[..., None],
        MASK[None],
        MASK[None, ..., None].astype(np.float32),
        np.uint8(MASK) * 255,
        0.4 * MASK + 0.2,
        Image.fromarray(MASK),
        Image.fromarray(np.uint8(MASK) * 200),
        [Image.fromarray(MASK).convert("RGBA")],
        Image.merge("LA", [Image.new("L", (16, 16), 255), Image.fromarray(np.uint8(MASK) * 255)]),
        MASK.repeat(3, 0).repeat(5, 1),
        Image.fromarray(np.uint8(MASK) * 128).resize((160, 48), 0),
    ],
)
def test_masks(mask):
    """White, or half and more, is 1, and nothing that is transparent; resized by the nearest pixel."""
    found = read_masks(mask, (16, 16))
    assert found.shape == (1, 16, 16, 1) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0, ..., 0], MASK)


@pytest.mark.parametrize("mode, high", [("F", 1), ("F", 255), ("I", 1), ("I", 255), ("I", 65535), ("I", 2**31 - 1)])
def test_masks_of_many_bits(mode, high, tmp_path):
    """White is the full scale that the values fit into; half of it and more counts."""
    for share in (1, 0.6):
        values = MASK * high * (share if high > 1 or mode == "F" else 1)
        Image.fromarray(values.astype(np.float32 if mode == "F" else np.int32)).save(tmp_path / "mask.tiff")
        mask = Image.open(tmp_path / "mask.tiff")
        assert mask.mode == mode
        np.testing.assert_array_equal(read_masks(mask, (16, 16))[0, ..., 0], MASK)


@pytest.mark.parametrize("kind, high", [("uint16", 65535), ("uint16", 255), ("int64", 1), ("uint32", 2**32 - 1)])
def test_masks_of_whole_numbers(kind, high):
    np.testing.assert_array_equal(read_masks(MASK.astype(kind) * np.array(high, kind), (16, 16))[0, ..., 0], MASK)


def test_sixteen_bit_png(tmp_path):
    Image.fromarray(np.uint16(MASK * 40000)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_masks(Image.open(tmp_path / "mask.png"), (16, 16))[0, ..., 0], MASK)


@pytest.mark.parametrize(
    "mask", [-np.ones((8, 8)), np.full((8, 8), 255.0), np.full((8, 8), np.nan), -np.eye(8, dtype=int)]
)
def test_values_out_of_range(mask):
    with pytest.raises(SdjaxError, match=r"^mask: values from 0 \(keep\) to 1"):
        read_masks(mask, (8, 8))


def palette(colours):
    """A palette picture of MASK, whose values are 0 and 1."""
    image = Image.fromarray(np.uint8(MASK), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_palettes():
    np.testing.assert_array_equal(read_masks(palette([(0, 0, 0), (255, 255, 255)]), (16, 16))[0, ..., 0], MASK)
    np.testing.assert_array_equal(read_masks(palette([(255, 255, 255), (0, 0, 0)]), (16, 16))[0, ..., 0], ~MASK)


@pytest.mark.parametrize("mask, most", [(np.zeros((8, 8)), "0"), (palette([(0, 0, 0), (128, 0, 0)]), "0.15")])
def test_masks_without_white_are_told(mask, most, caplog):
    assert not read_masks(mask, (8, 8)).any()
    assert f"nothing in it is white (the largest value is {most} of 1)" in caplog.text


def hole(mode):
    """A picture whose MASK is transparent, and else of some colour."""
    image = Image.new("RGBA", (16, 16), (200, 220, 90, 255))
    image.putalpha(Image.fromarray(np.uint8(~MASK) * 255))
    if mode != "RGBA":
        image = palette([(250, 250, 250), (0, 0, 0)])
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_transparent_hole_is_told(mode, caplog):
    found = read_masks(hole(mode), (16, 16))[0, ..., 0]
    np.testing.assert_array_equal(found, ~MASK)
    assert "34% of it is transparent, which is kept" in caplog.text
    caplog.clear()
    read_masks(Image.fromarray(MASK).convert("RGBA"), (16, 16))
    assert not caplog.text, "nothing in it is transparent"


@pytest.mark.parametrize(
    "mask, picture, told",
    [
        ((16, 16), (64, 64), False),
        ((50, 30), (50, 30), False),  # the picture becomes 48 x 32 itself
        ((48, 32), (50, 33), False),
        ((50, 30), (64, 64), True),
        ((64, 64), (50, 30), True),
        ((30, 50), (50, 30), True),
    ],
)
def test_a_mask_of_another_shape_is_told(mask, picture, told, caplog):
    size = tuple(max(side // 16, 1) * 16 for side in picture)
    read_masks(np.ones(mask), size, Image.new("RGB", picture[::-1]))
    assert ("stretched over the picture's" in caplog.text) == told


def test_a_turned_picture_has_its_own_shape(caplog):
    picture = Image.new("RGB", (50, 30))
    picture.getexif()[0x112] = 6  # to be turned by 90 degrees
    read_masks(np.ones((50, 30)), (48, 16), picture)
    assert not caplog.text


def test_broken_exif_does_not_end_a_mask(caplog):
    def broken():
        raise SyntaxError("not a TIFF file")

    picture, mask = Image.new("RGB", (50, 30)), Image.fromarray(MASK.astype(np.int32))
    picture.getexif = mask.getexif = broken
    np.testing.assert_array_equal(read_masks(mask, (16, 16), picture)[0, ..., 0], MASK)
    assert read_masks(np.ones((30, 50)), (16, 48), picture).all() and not caplog.text


def test_cells(caplog):
    """By their top left pixels, as diffusers resizes masks, or by any; a line where most of the white is lost."""
    mask = np.zeros((1, 16, 16, 1), np.float32)
    mask[:, 5:7, 5:7] = 1  # in one square of 4 x 4, away from its corner
    assert not cells_of(mask, 4).any()
    assert "100% of its white is not repainted" in caplog.text and "--mask-cells any" in caplog.text
    assert np.argwhere(cells_of(mask, 4, "any")).tolist() == [[0, 1, 1, 0]]
    caplog.clear()
    mask[:, 4:12, 4:12] = 1
    for mask_cells in ("corner", "any"):
        np.testing.assert_array_equal(cells_of(mask, 4, mask_cells), mask[:, ::4, ::4])
    mask[:, 3, 4:12] = 1
    assert cells_of(mask, 4).sum() == 4 and cells_of(mask, 4, "any").sum() == 6
    assert not cells_of(np.zeros((1, 8, 8, 1)), 4).any() and not caplog.text
    with pytest.raises(SdjaxError, match=r"^mask_cells 'all': one of corner, any$"):
        cells_of(mask, 4, "all")


def test_feathering_stays_inside():
    mask = np.zeros((1, 32, 32, 1), np.float32)
    mask[:, 8:, 4:28] = 1
    np.testing.assert_array_equal(feather_masks(mask, 0), mask)
    soft = feather_masks(mask, 4)[0, ..., 0]
    assert (soft[mask[0, ..., 0] == 0] == 0).all() and soft.max() == 1
    np.testing.assert_allclose(soft[20, 4:9], [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1])
    assert soft[31, 10] == 1, "the picture's own edge is no border"
    assert (feather_masks(np.ones((1, 8, 8, 1), np.float32), 3) == 1).all()


def test_feathering_leaves_small_holes():
    """What is narrower than twice the feather is painted all the same, most where it is deepest."""
    mask = np.zeros((2, 32, 32, 1), np.float32)
    mask[0, 10:22, 10:22] = mask[1, :, 4:8] = 1
    soft = feather_masks(mask, 8)[..., 0]
    np.testing.assert_allclose(soft[0, 16, 10:22] * 16, [1, 3, 5, 7, 9, 11, 11, 9, 7, 5, 3, 1])
    np.testing.assert_allclose(soft[1, 0, 3:9] * 16, [0, 1, 3, 3, 1, 0])
    np.testing.assert_allclose(feather_masks(mask, 1e10)[..., 0] * 1e10, soft * 8, rtol=1e-6)
