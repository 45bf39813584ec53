"""Preprocessors of control pictures, and how control pictures are read."""

import sys

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.errors import SdjaxError
from sdjax.image.hints import read_hints
from tests.hed import hed_arrays, write_hed

SQUARE = np.zeros((32, 32, 3), np.uint8)
SQUARE[8:24, 8:24] = (250, 120, 30)
PICTURE = Image.fromarray(SQUARE)


def test_canny():
    cv2 = pytest.importorskip("cv2")
    edges = sdjax.preprocess.canny(PICTURE)
    assert edges.mode == "RGB" and edges.size == PICTURE.size
    array = np.asarray(edges)
    assert set(np.unique(array)) == {0, 255} and (array == array[..., :1]).all()
    np.testing.assert_array_equal(array[..., 0], cv2.Canny(SQUARE, 100, 200))
    np.testing.assert_array_equal(np.asarray(sdjax.preprocess.canny(SQUARE)), array)
    assert array[8:24, 8:24, 0].any() and not array[11:21, 11:21].any() and not array[:6].any()
    faint = SQUARE // 16
    assert (
        not np.asarray(sdjax.preprocess.canny(faint)).any() and np.asarray(sdjax.preprocess.canny(faint, 5, 10)).any()
    )


def test_canny_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SdjaxError, match=r"canny: needs opencv-python-headless, .*sdjax\[control\]"):
        sdjax.preprocess.canny(PICTURE)


def test_hed(tmp_path):
    pytest.importorskip("h5py")
    path = write_hed(tmp_path / "hed.h5")
    weights = sdjax.preprocess.read_hed(path)
    assert weights["block_1_conv_0"]["kernel"].shape == (3, 3, 3, 4) and weights["fuse"]["bias"].shape == (1,)
    for picture in (PICTURE, SQUARE[:7, :13]):
        found = sdjax.preprocess.hed(picture, path)
        array = np.asarray(found)
        assert found.mode == "RGB" and array.shape == np.shape(picture) and (array == array[..., :1]).all()
        assert len(np.unique(array)) > 5
        np.testing.assert_array_equal(np.asarray(sdjax.preprocess.hed(picture, weights)), array)
    arrays = hed_arrays()
    for name, value, said in (
        (
            "block3/layers/conv2d_1/vars/0",
            np.zeros((3, 3, 6, 7), np.float32),
            r"block3/layers/conv2d_1/vars/0.*\[3, 3, 6, 7\]",
        ),
        ("dsn2/vars/1", np.zeros(2, np.float32), "dsn2/vars/0"),
        ("fuse/vars/0", np.zeros((1, 1, 4, 1), np.float32), "fuse/vars/0"),
    ):
        with pytest.raises(SdjaxError, match=f"hed.h5: {said}"):
            sdjax.preprocess.hed(PICTURE, write_hed(path, arrays | {name: value}))
    with pytest.raises(SdjaxError, match="weights is int"):
        sdjax.preprocess.hed(PICTURE, 3)
    with pytest.raises(SdjaxError, match=r"nowhere.h5: no such file"):
        sdjax.preprocess.hed(PICTURE, "nowhere.h5")


def test_grey_and_invert():
    grey = np.asarray(sdjax.preprocess.grey(PICTURE))
    assert grey.shape == SQUARE.shape and (grey == grey[..., :1]).all()
    assert grey[9, 9, 0] == round(0.299 * 250 + 0.587 * 120 + 0.114 * 30)
    np.testing.assert_array_equal(np.asarray(sdjax.preprocess.invert(SQUARE)), 255 - SQUARE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("p.png",), "picture is str"),
        ((SQUARE / 255.0,), "picture is float64"),
        ((SQUARE[..., :2],), "picture is uint8"),
        ((PICTURE, -1), "low -1"),
        ((PICTURE, 200, 100), "low 200: not above high"),
    ],
)
def test_what_is_refused(arguments, said):
    with pytest.raises(SdjaxError, match=said):
        sdjax.preprocess.canny(*arguments)


def test_hints():
    found = read_hints("control_image", PICTURE, (32, 32))
    assert found.shape == (1, 32, 32, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], SQUARE / 255, atol=1e-7)
    soft = SQUARE // 3 + 80  # Lanczos does not leave 0 .. 255
    floats = (soft / 255).astype(np.float32)
    for size in ((32, 32), (16, 24), (64, 40)):
        pil, array = (read_hints("control_image", one, size) for one in (soft, floats))
        assert pil.shape == array.shape == (1, *size, 3) and array.min() >= 0 and array.max() <= 1
        assert np.abs(pil - array).max() < 0.01
    grey = read_hints("control_image", PICTURE, (32, 32), 1)
    assert grey.shape == (1, 32, 32, 1)
    assert np.abs(grey[0, ..., 0] * 255 - np.asarray(PICTURE.convert("L"))).max() < 0.51
    lines = read_hints("control_image", SQUARE[..., 0], (32, 32))
    assert lines.shape == (1, 32, 32, 3) and (lines == lines[..., :1]).all()
    assert len(read_hints("control_image", [PICTURE, SQUARE, floats], (32, 32))) == 3
    with pytest.raises(SdjaxError, match="control_image is empty"):
        read_hints("control_image", [], (32, 32))
