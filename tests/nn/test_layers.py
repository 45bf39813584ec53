"""Norms and activations, against their formulas in float64."""

from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.layers import GroupNorm, by_rows, gelu, two_pass


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("ratio", [0, 1, 10, 100])
@pytest.mark.parametrize("way", [two_pass, by_rows])
@pytest.mark.parametrize("shape", [(2, 32, 48, 64), (2, 1000, 64)], ids=["picture", "tokens"])
def test_mean_and_variance_of_groups(way, ratio, dtype, shape):
    """Where the mean is `ratio` standard deviations, and differs from channel to channel."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape) + ratio * (1 + 0.2 * rng.normal(size=64)), dtype)
    exact = np.asarray(x, np.float64).reshape(2, -1, 8, 8)
    mean, variance = jax.jit(way, static_argnums=1)(x.astype(jnp.float32), 8)
    assert mean.shape == variance.shape == (2, *[1] * (len(shape) - 2), 64)
    mean, variance = (np.asarray(value).reshape(2, 8, 8)[..., 0] for value in (mean, variance))
    assert np.abs((mean - exact.mean((1, 3))) / exact.std((1, 3))).max() < 5e-6
    assert np.abs(variance / exact.var((1, 3)) - 1).max() < (3e-6 if len(shape) == 4 or way is two_pass else 3e-5)


def test_gpus_read_half_precision_once():
    norm = GroupNorm(8, 1e-5)

    def lowered(platform, dtype):
        x, scale = jax.ShapeDtypeStruct((2, 16, 16, 64), dtype), jax.ShapeDtypeStruct((64,), jnp.float32)
        apply = lambda x, scale: norm.apply({"params": {"scale": scale, "bias": scale}}, x)
        return jax.jit(apply).trace(x, scale).lower(lowering_platforms=(platform,)).as_text()

    reads = lambda *args: [line for line in lowered(*args).splitlines() if "reduce(" in line and "16x16x64" in line]
    assert all("dimensions = [2]" in line for line in reads("cuda", jnp.bfloat16))
    for platform, dtype in (("cuda", jnp.float32), ("cpu", jnp.bfloat16), ("tpu", jnp.bfloat16)):
        assert all("dimensions = [1, 2]" in line for line in reads(platform, dtype))
        assert len(reads(platform, dtype)) == len(reads("cuda", jnp.bfloat16)) == 2


@pytest.mark.parametrize("dtype, limit", [("float32", 4e-7), ("float16", 2e-6), ("bfloat16", 2e-6)])
def test_gelu_is_the_exact_one_rounded_once(dtype, limit):
    x = jnp.asarray(np.linspace(-9, 9, 20001), dtype)
    exact = np.array([0.5 * value * (1 + erf(value / 2**0.5)) for value in np.asarray(x, np.float64)])
    rounded = 0.51 * float(jnp.finfo(dtype).eps) * np.abs(exact) if dtype != "float32" else 0
    assert (np.abs(np.asarray(jax.jit(gelu)(x), np.float64) - exact) <= limit + rounded).all()
