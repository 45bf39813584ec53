"""Norms and activations, against their formulas in float64."""

from functools import partial
from math import erf
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError

from sdjax.networks.table import param_shapes
from sdjax.networks.unet.network import UNet
from sdjax.nn.kernels.backends import LOWERED_FOR, SHAPES
from sdjax.nn.kernels.convolution import by_bands
from sdjax.nn.kernels.norm import by_rows, by_squares, two_pass
from sdjax.nn.layers import Dense, GroupNorm, LayerNorm, ResBlock, conv3x3, gelu, lecun_normal, some_at_a_time
from tests.narrow import NARROW


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("ratio", [0, 1, 10, 100])
@pytest.mark.parametrize("way", [two_pass, by_rows, by_squares])
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
    rounding = (ratio * 2**-9) ** 2 / 3  # what bfloat16 adds to the variance, at most
    limit = 3e-6 + rounding if way is by_squares else 3e-6
    assert np.abs(variance / exact.var((1, 3)) - 1).max() < limit


def test_a_constant_has_no_negative_variance():
    x = jnp.full((2, 8, 8, 32), 1000.1)
    assert (by_squares(x, 4)[1] >= 0).all()


@pytest.mark.parametrize(
    "module, wrong",
    [
        (Dense(5, jnp.float32), {"kernel": (4, 4)}),
        (Dense(5, jnp.float32), {"bias": (4,)}),
        (GroupNorm(2, 1e-5), {"scale": (8,)}),
        (LayerNorm(), {"norm": {"scale": (3,), "bias": (4,)}}),
        (conv3x3(5, None, jnp.float32), {"kernel": (3, 3, 5, 4)}),
    ],
)
def test_parameters_of_a_wrong_shape_are_refused(module, wrong):
    x = jnp.ones((1, 4, 4, 4))
    params = module.init(jax.random.key(0), x)["params"]
    module.apply({"params": params}, x)
    wrong = jax.tree.map(jnp.zeros, wrong, is_leaf=lambda leaf: isinstance(leaf, tuple))
    with pytest.raises(ScopeParamShapeError):
        module.apply({"params": params | wrong}, x)
    with pytest.raises((ScopeParamNotFoundError, ScopeCollectionNotFound)):
        module.apply({"params": {}}, x)


@pytest.mark.usefixtures("quick_compile")
def test_shapes_alone_draw_nothing_and_models_do():
    shapes = param_shapes(NARROW.unet)
    init = jax.jit(UNet(NARROW.unet).init)
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 3, 24)))
    assert jax.tree.map(jnp.shape, params["params"]) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    with LOWERED_FOR(SHAPES):
        assert not lecun_normal(jax.random.key(0), (3, 4)).any()
    assert np.std(params["params"]["conv_in"]["kernel"]) > 0.05  # 1 / sqrt(9 x 4) = 0.17


def lowered(module, shape, platform, dtype):
    x = jax.ShapeDtypeStruct(shape, dtype)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    lines = jax.jit(module.apply).trace(params, x).lower(lowering_platforms=(platform,)).as_text().splitlines()
    whole = [line for line in lines if "x".join(map(str, shape[1:])) + "xf32" in line]
    reads = [line for line in whole if "reduce(" in line]
    assert len(reads) == 2
    less_mean = [line for line in whole if "stablehlo.subtract" in line]  # one gives the result
    return "rows" if "dimensions = [2]" in reads[0] and len(shape) == 4 else "one" if len(less_mean) == 1 else "two"


def test_which_norms_read_once():
    group = partial(lowered, GroupNorm(8, 1e-5), (2, 16, 16, 64))
    layer = partial(lowered, LayerNorm(), (2, 12, 64))
    assert group("cuda", jnp.bfloat16) == group("cuda", jnp.float16) == "rows"
    assert group("tpu", jnp.bfloat16) == layer("tpu", jnp.bfloat16) == "one"
    for way in (group, layer):
        for where in (("cuda", jnp.float32), ("cpu", jnp.bfloat16), ("tpu", jnp.float32), ("tpu", jnp.float16)):
            assert way(*where) == "two"
    assert layer("cuda", jnp.bfloat16) == "two"  # there one kernel does all of it


@pytest.mark.parametrize("dtype, limit", [("float32", 4e-7), ("float16", 2e-6), ("bfloat16", 2e-6)])
def test_gelu_is_the_exact_one_rounded_once(dtype, limit):
    x = jnp.asarray(np.linspace(-9, 9, 20001), dtype)
    exact = np.array([0.5 * value * (1 + erf(value / 2**0.5)) for value in np.asarray(x, np.float64)])
    rounded = 0.51 * float(jnp.finfo(dtype).eps) * np.abs(exact) if dtype != "float32" else 0
    assert (np.abs(np.asarray(jax.jit(gelu)(x), np.float64) - exact) <= limit + rounded).all()


def test_tokens_some_at_a_time_are_the_same():
    """4 x 2**18 values go in four parts on a CPU, in one where they cannot be shared out, and on other backends."""
    x = jax.random.normal(jax.random.key(0), (2, 2**13, 64))
    function = lambda x: jnp.sin(x) @ jnp.eye(64, 128) @ jnp.ones((128, 64))
    for given, loops in ((x, 1), (x[:, :-1], 0), (x[:, :16], 0)):
        both = jax.jit(lambda x: some_at_a_time(function, x))
        np.testing.assert_allclose(both(given), function(given), rtol=1e-5, atol=1e-5)
        for platform, count in {"cpu": loops, "cuda": 0, "tpu": 0}.items():
            program = jax.export.export(both, platforms=[platform])(given).mlir_module()
            assert program.count("stablehlo.while") == count, (given.shape, platform)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_block_in_its_picture_s_place_is_the_same(monkeypatch, shifted):
    """Values, and gradients by all parameters; half as many channels, with a time shift and without."""
    x, weight, shift = (
        np.random.default_rng(i).normal(size=shape).astype(np.float32)
        for i, shape in enumerate([(2, 16, 6, 16), (2, 16, 6, 8), (2, 8)])
    )
    block = ResBlock(8, 4, 1e-6, jnp.float32)
    params = jax.jit(block.init)(jax.random.key(3), x)

    def values():
        loss = lambda params, x: (block.apply(params, x, shift=shift if shifted else None) * weight).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    whole = values()
    for module in ("layers", "kernels.convolution"):
        monkeypatch.setattr(f"sdjax.nn.{module}.is_large", lambda *_: True)
    monkeypatch.setattr("sdjax.nn.layers.by_bands", bands := Mock(side_effect=partial(by_bands, rows=4)))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=2e-5, rtol=1e-4), whole, values()))
    assert bands.called


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends compute the block as it stands")
def test_a_large_block_holds_its_picture_and_its_result():
    block = ResBlock(32, 8, 1e-6, jnp.float32)
    shape = jax.ShapeDtypeStruct((1, 1024, 1024, 64), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), shape)
    held = jax.jit(lambda params, x: block.apply(params, 2 * x).sum()).lower(params, shape).compile()
    assert held.memory_analysis().temp_size_in_bytes < 1.8 * 4 * shape.size, "input and result are 1.5, h would be 2"
