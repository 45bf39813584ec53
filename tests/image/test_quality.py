"""PSNR and SSIM against closed forms and against their formulas, computed the way scikit-image does."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sdjax.image.quality import psnr, ssim

RNG = np.random.default_rng(0)


def pictures(*shape):
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def reference(a, b):
    """structural_similarity of scikit-image for one channel: gaussian_weights, no sample covariance, range 2."""
    blur = lambda x: gaussian_filter(x, 1.5, truncate=3.5)  # 5 pixels to every side
    a, b = a.astype(np.float64), b.astype(np.float64)
    ux, uy = blur(a), blur(b)
    vx, vy, vxy = blur(a * a) - ux * ux, blur(b * b) - uy * uy, blur(a * b) - ux * uy
    c1, c2 = 0.02**2, 0.06**2
    s = ((2 * ux * uy + c1) * (2 * vxy + c2)) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return s[5:-5, 5:-5].mean()


@pytest.mark.parametrize("noise", [0.02, 0.3, 2.0])
def test_ssim_is_scikit_image_s(noise):
    a = np.stack([gaussian_filter(pictures(40, 23, 3), (2, 2, 0)) * 3 for _ in range(2)]).clip(-1, 1)
    b = (a + noise * pictures(2, 40, 23, 3)).clip(-1, 1)
    want = [np.mean([reference(x[..., c], y[..., c]) for c in range(3)]) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), want, atol=2e-5)
    np.testing.assert_allclose(ssim(b, a), ssim(a, b), atol=1e-6)


def test_ssim_in_closed_form():
    a = pictures(3, 20, 20, 3)
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-5)
    flat = lambda value: np.full((1, 16, 16, 3), value, np.float32)  # only the means count
    np.testing.assert_allclose(ssim(flat(0.5), flat(-0.25)), (-0.25 + 4e-4) / (0.25 + 0.0625 + 4e-4), rtol=1e-4)


@pytest.mark.parametrize("height, width", [(8, 8), (11, 30), (1, 1), (3, 2)])
def test_small_pictures(height, width):
    a, b = pictures(2, height, width, 3), pictures(2, height, width, 3)
    assert np.isfinite(ssim(a, b)).all() and np.allclose(ssim(a, a), 1, atol=1e-5)


def test_psnr():
    a = pictures(2, 5, 6, 3) * 0.5
    np.testing.assert_allclose(psnr(a, a + np.float32(0.2)), 20, atol=1e-4)  # a tenth of the range
    b = pictures(2, 5, 6, 3)
    want = [10 * np.log10(4 / ((x - y) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), want, rtol=1e-5)
    np.testing.assert_allclose(psnr(a, a), 106.02, atol=0.01)
