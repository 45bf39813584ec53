"""How close a reconstruction is to its picture: PSNR and SSIM, one number per picture."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax.types import Array

SIDE, SIGMA = 11, 1.5  # SSIM's Gaussian window: its side in pixels, its standard deviation
LEAST = 1e-10  # mean squared error below which PSNR rises no further


def psnr(a: Array, b: Array) -> Array:
    """Returns the peak signal-to-noise ratio in decibels, [B], of pixels a and b in [-1, 1], [B, H, W, C] each.

    The formula is 10 log10(2^2 / mse). Equal pictures have 106 dB instead of infinity.
    """
    return 10 * jnp.log10(4 / jnp.maximum(jnp.square(a - b).mean((1, 2, 3)), LEAST))


def ssim(a: Array, b: Array) -> Array:
    """Returns the structural similarity, [B], of pixels a and b in [-1, 1], [B, H, W, C] each; 1 if they are equal.

    The source is Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004. The
    Gaussian window of 11 pixels and sigma 1.5 is placed wherever it lies inside the picture, and the result is averaged
    over places and channels, as in scikit-image's structural_similarity(gaussian_weights=True,
    use_sample_covariance=False, data_range=2). If a side is shorter than the window, the window is as long as that
    side, made odd.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


def _blur(x: Array) -> Array:
    for axis in (1, 2):
        size = min(SIDE, x.shape[axis] - (x.shape[axis] + 1) % 2)
        window = np.exp(-0.5 * (np.arange(size) - size // 2) ** 2 / SIGMA**2)
        count = x.shape[axis] - size + 1
        shifted = (lax.slice_in_dim(x, k, k + count, axis=axis) for k in range(size))
        x = sum(weight * part for weight, part in zip((window / window.sum()).tolist(), shifted, strict=True))
    return x
