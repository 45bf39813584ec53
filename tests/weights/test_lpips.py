"""LPIPS with HED's features. LPIPS' own files are compared with torch in tests/parity/test_lpips.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.image.preprocess import read_hed
from sdjax.networks.hed import network as hed
from sdjax.networks.lpips.network import SCALE, SHIFT, lpips
from sdjax.weights.lpips import read_hed_lpips
from tests.hed import WIDTHS, hed_arrays, write_hed

pytest.importorskip("h5py")


def test_hed_s_features(tmp_path):
    """What the first layers see of a picture in [-1, 1] is what HED's see of it in 0 .. 255, inside its border."""
    path = write_hed(tmp_path / "hed.h5")
    params, theirs = read_hed_lpips(path), read_hed(path)
    assert [params[f"head_{i}"].shape for i in range(5)] == [(width, 1) for width in WIDTHS]
    assert len([name for name in params if name.startswith("conv")]) == 13
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    h, ours = hed.caffe_pixels(jnp.asarray(pixels)), (pixels / 127.5 - 1 - np.array(SHIFT)) / np.array(SCALE)
    ours = jnp.asarray(ours, jnp.float32)
    for number, name in enumerate(("block_1_conv_0", "block_1_conv_1")):
        h = jnp.maximum(hed.conv(theirs[name], h), 0)
        ours = jnp.maximum(hed.conv(params[f"conv_{number}"], ours), 0)
        inside = (slice(None), slice(number + 1, -number - 1), slice(number + 1, -number - 1))
        np.testing.assert_allclose(ours[inside], h[inside], rtol=1e-4, atol=1e-4 * float(h.max()))
    for number, name in ((2, "block_2_conv_0"), (12, "block_5_conv_2")):
        np.testing.assert_array_equal(params[f"conv_{number}"]["kernel"], theirs[name]["kernel"])


def test_the_distance(tmp_path):
    params = read_hed_lpips(write_hed(tmp_path / "hed.h5"))
    a, b = np.random.default_rng(1).uniform(-1, 1, (2, 3, 16, 16, 3)).astype(np.float32)
    near, far = lpips(params, a, 0.9 * a + 0.1 * b), lpips(params, a, b)
    assert near.shape == (3,) and (near > 0).all() and (near < 0.5 * far).all()
    np.testing.assert_array_equal(lpips(params, a, a), 0)
    name = "block2/layers/conv2d/vars/0"
    with pytest.raises(SdjaxError, match=rf"hed.h5: {name}.*not HED's"):
        read_hed_lpips(write_hed(tmp_path / "hed.h5", hed_arrays() | {name: np.zeros((3, 3, 3, 5), np.float32)}))
