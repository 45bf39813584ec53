"""Sheets with captions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image.sheets import CAPTION, captioned_sheet, wrapped


@given(st.text(st.characters(codec="ascii"), max_size=80), st.integers(4, 30))
def test_lines_fit(text, width):
    lines = wrapped(text, width, len).split("\n")
    assert len(lines) <= 3 and all(len(line) <= width for line in lines)
    if len(" ".join(text.split())) <= width:
        assert lines == [" ".join(text.split())]


def test_what_is_cut_says_so():
    assert wrapped("one two three four five six", 9, len) == "one two\nthree\nfour f..."
    assert wrapped("incomprehensibilities", 8, len) == "incom..."


def test_captions_stand_below():
    images = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    sheet = np.asarray(captioned_sheet(images, ["a red thing", "a green one " * 9, ""], columns=3)).astype(int)
    for i, colour in enumerate([(255, 0, 0), (0, 128, 0), (0, 0, 255)]):
        cell = sheet[:, 8 + i * (CAPTION + 8) : 8 + i * (CAPTION + 8) + CAPTION]
        rows, columns = np.nonzero((cell == colour).all(-1))
        assert rows.max() - rows.min() == 47 and columns.max() - columns.min() == 63
        below = (cell[rows.max() + 1 :] < 100).all(-1)
        assert below.any() == (i < 2) and not (cell[: rows.min()] < 250).any()
    with pytest.raises(SdjaxError, match=r"^images: 3 for 2 captions$"):
        captioned_sheet(images, ["a", "b"])
