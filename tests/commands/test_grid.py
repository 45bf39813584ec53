import numpy as np
import pytest
from PIL import Image

from sdjax.commands.grid import cells, grid_sheet, read_axes
from sdjax.errors import SdjaxError
from sdjax.image.sheets import labelled_sheet


def test_axes_and_cells():
    axes = read_axes(["guidance-scale=3, 7.5", "sampler=ddim,euler_a", "seed=7,0..2"])
    assert axes == {"guidance_scale": [3.0, 7.5], "sampler": ["ddim", "euler_a"], "seed": [7, 0, 1, 2]}
    found = list(cells(axes))
    assert len(found) == 16 and len({tuple(cell.values()) for cell in found}) == 16
    assert found[0] == {"guidance_scale": 3.0, "sampler": "ddim", "seed": 7}
    assert found[5] == {"guidance_scale": 3.0, "sampler": "euler_a", "seed": 0}
    assert read_axes([]) == {}


@pytest.mark.parametrize(
    "texts, message",
    [
        (["colour=red"], "NAME one of steps, sampler, .*seed"),
        (["seed"], "'seed': whole numbers"),
        (["seed=1.5"], "whole numbers"),
        (["steps=20,,30"], "whole numbers"),
        (["guidance_scale=a"], "numbers"),
        (["seed=3..1"], "a..b"),
        (["seed=1,1"], "twice"),
        (["seed=1", "seed=2"], "seed is there twice"),
        (["sampler=ddim,"], "names with commas"),
        ([""], "NAME"),
    ],
)
def test_refusals(texts, message):
    with pytest.raises(SdjaxError, match=message) as error:
        read_axes(texts)
    assert str(error.value).startswith("grid") and "\n" not in str(error.value)


def test_sheet():
    axes = read_axes(["guidance_scale=3,7.5", "seed=0..2"])
    colours = np.arange(6) * 40
    images = [Image.new("RGB", (64, 48), (int(c), 0, 255)) for c in colours]
    sheet = np.asarray(grid_sheet(axes, images))
    for i, colour in enumerate(colours):
        rows, columns = np.nonzero((sheet == (colour, 0, 255)).all(-1))
        assert len(rows) == 64 * 48, "each picture is there whole"
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (47, 63)
        assert (rows.min() > sheet.shape[0] / 2) == (i >= 3), "row by row"
    dark = (sheet < 100).all(-1)
    assert dark.any() and not dark[-30:, -60:].any(), "labels at the top and at the left"
    assert np.asarray(grid_sheet(read_axes(["seed=0..5"]), images)).shape[0] < 120, "one axis is one row"


def test_labels_are_the_values(monkeypatch):
    monkeypatch.setattr("sdjax.commands.grid.labelled_sheet", lambda images, rows, columns: columns)
    assert grid_sheet(read_axes(["seed=1234567,1234568"]), []) == ["seed\n1234567", "seed\n1234568"]
    assert grid_sheet(read_axes(["guidance_scale=7.5,8"]), []) == ["guidance scale\n7.5", "guidance scale\n8"]


def test_labels_make_room():
    image = Image.new("RGB", (8, 8), "red")
    narrow, wide = (labelled_sheet([image], ["row"], [text]).width for text in ("a", "a very long label indeed"))
    assert wide > narrow + 50
    with pytest.raises(SdjaxError, match="1 for 2 rows"):
        labelled_sheet([image], ["a", "b"], ["c"])
