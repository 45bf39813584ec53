import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractMesh, AxisType

from sdjax.nn.kernels.convolution import (
    ROWS,
    as_product,
    by_bands,
    by_columns,
    by_phase,
    convolve,
    convolve_enlarged,
    direct,
    side_by_side,
    upsample_nearest,
    winograd,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def definition(x, kernel):
    """The sum itself, float64."""
    (_, h, w, _), x = x.shape, np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(x[:, i : i + h, j : j + w] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))


def doubled(x):
    return x.repeat(2, 1).repeat(2, 2)


def even(x):
    return (0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)


def error(found, wanted):
    return np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max()


BIAS = draw(64, seed=3)
WAYS = [
    (direct, lambda x: x),
    (by_columns, lambda x: x),
    (as_product, lambda x: x),
    (lambda x, kernel: by_phase(x, kernel, BIAS[: kernel.shape[3]]) - BIAS[: kernel.shape[3]], doubled),
    (lambda x, kernel: winograd(jnp.pad(x, even(x)), kernel)[:, : x.shape[1], : x.shape[2]], lambda x: x),
    (lambda x, kernel: direct(upsample_nearest(x), kernel), doubled),
]


@pytest.mark.parametrize("shape, features", [((1, 1, 1, 3), 5), ((2, 5, 3, 4), 4), ((1, 8, 8, 640), 64)])
@pytest.mark.parametrize("way, prepare", WAYS)
def test_each_way_is_the_sum(way, prepare, shape, features):
    x, kernel = draw(*shape), draw(3, 3, shape[3], features, seed=1)
    assert error(jax.jit(way)(x, kernel), definition(prepare(x), kernel)) < 2e-6


@pytest.mark.parametrize("shape", [(2, 8, 8, 512), (2, 2, 3, 512), (1, 8, 9, 4), (1, 4, 4, 512), (2, 16, 18, 256)])
@pytest.mark.parametrize(
    "function, plain",
    [
        (lambda x, kernel: convolve(x, kernel, BIAS), lambda x, kernel: direct(x, kernel) + BIAS),
        (
            lambda x, kernel: convolve_enlarged(x, kernel, BIAS),
            lambda x, kernel: direct(upsample_nearest(x), kernel) + BIAS,
        ),
    ],
)
def test_values_and_gradients_are_those_of_the_direct_way(function, plain, shape):
    x, kernel = draw(*shape), draw(3, 3, shape[3], 64, seed=1)
    weight = draw(*plain(x, kernel).shape, seed=2)
    both = lambda way: jax.jit(jax.value_and_grad(lambda x, kernel: (way(x, kernel) * weight).sum(), (0, 1)))(x, kernel)
    (value, found), (wanted, gradients) = both(function), both(plain)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    for a, b in zip(found, gradients, strict=True):
        assert error(a, np.asarray(b)) < 3e-6


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1)), ROWS])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height, width", [(6, 8), (5, 7), (4, 3)])
def test_columns_take_strides_and_padding(padding, stride, height, width):
    x, kernel = draw(3, height, width, 2), draw(3, 3, 2, 5, seed=1)
    functions = [
        jax.jit(jax.value_and_grad(lambda x, kernel, way=way: jnp.sin(way(x, kernel, stride, padding)).sum(), (0, 1)))
        for way in (by_columns, direct)
    ]
    found, wanted = (jax.tree.leaves(function(x, kernel)) for function in functions)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_columns(x, kernel, stride, padding), direct(x, kernel, stride, padding), atol=1e-5)


def test_columns_side_by_side_are_not_kept_for_the_backward_pass():
    x, kernel = draw(2, 8, 8, 16), draw(3, 3, 16, 4, seed=1)
    kept = jax.eval_shape(lambda x, kernel: jax.vjp(by_columns, x, kernel)[1], x, kernel)
    assert sorted(leaf.size for leaf in jax.tree.leaves(kept)) == sorted([x.size, kernel.size])


def test_enlarged_side_by_side_bit_for_bit():
    x = draw(2, 3, 5, 4)
    np.testing.assert_array_equal(side_by_side(x), doubled(x))
    np.testing.assert_array_equal(upsample_nearest(x), doubled(x))


def test_which_way_is_taken_where():
    products = lambda *args, **kwargs: text(*args, **kwargs).count("stablehlo.dot_general")
    convolutions = lambda *args: text(*args).count("stablehlo.convolution")

    def text(platform, function, *shape, features=64):
        shapes = [jax.ShapeDtypeStruct(side, jnp.float32) for side in (shape, (3, 3, shape[3], features), (features,))]
        return export.export(jax.jit(function), platforms=[platform])(*shapes).mlir_module()

    assert products("cpu", convolve, 1, 8, 8, 1280) == 1
    for platform in ("cuda", "tpu"):
        assert products(platform, convolve, 1, 8, 8, 1280) == 0
        assert convolutions(platform, convolve_enlarged, 1, 64, 64, 16) == 1
    assert convolutions("cpu", convolve_enlarged, 1, 64, 64, 16) == 4
    looped = lambda side: "stablehlo.while" in text("cpu", convolve_enlarged, 1, side, side, 256)
    assert looped(256) and not looped(12), "in bands only what is large"
    assert convolutions("cpu", convolve, 1, 256, 256, 320) == convolutions("tpu", convolve, 1, 64, 64, 320) == 1
    assert products("cpu", convolve, 1, 64, 64, 320) == 16 and convolutions("cpu", convolve, 1, 64, 64, 320) == 0
    assert products("cpu", convolve, 1, 64, 64, 320, features=4) == 0
    columns = lambda *args: "[0, 1, b, f]" in text(*args)
    for function in (convolve, convolve_enlarged):
        assert columns("tpu", function, 2, 64, 64, 320) and columns("tpu", function, 12, 64, 64, 320)
        assert not columns("tpu", function, 8, 64, 64, 320), "a full batch"
        assert not columns("tpu", function, 30, 64, 64, 320), "nearly full"
        assert not columns("cuda", function, 2, 64, 64, 320) and not columns("cpu", function, 2, 64, 64, 320)
        with jax.sharding.use_abstract_mesh(AbstractMesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))):
            assert columns("tpu", lambda *args, f=function: f(*args), 8, 64, 64, 320), "two on each device"
            assert not columns("tpu", lambda *args, f=function: f(*args), 32, 64, 64, 320)


@pytest.mark.parametrize("height, rows", [(1, 2), (6, 2), (8, 4), (12, 8), (10, 10)])
@pytest.mark.parametrize("in_place", [False, True])
def test_bands_are_the_whole(height, rows, in_place):
    """A convolution of what is made of each pixel, beside something else that is."""
    x, kernel, bias = draw(2, height, 3, 4), draw(3, 3, 4, 2, seed=1), draw(4, seed=2)
    before, beside = lambda x, bias: jnp.tanh(x) + bias, lambda x: x[..., :2] * x[..., 2:]

    def whole(x, kernel, bias):
        return jnp.concatenate([direct(before(x, bias), kernel), beside(x)], -1)

    def bands(x, kernel, bias):
        step = lambda active, x: jnp.concatenate([direct(active, kernel, padding=ROWS), beside(x)], -1)
        return by_bands(x, lambda x: before(x, bias), step, in_place, rows)

    found = jax.jit(bands)(x, kernel, bias)
    assert error(found[..., :2], definition(np.tanh(x) + bias, kernel)) < 2e-6
    np.testing.assert_array_equal(found[..., 2:], beside(x))
    weight = draw(*found.shape, seed=3)
    gradients = lambda way: jax.jit(jax.grad(lambda *args: (way(*args) * weight).sum(), (0, 1, 2)))(x, kernel, bias)
    for a, b in zip(gradients(bands), gradients(whole), strict=True):
        assert error(a, np.asarray(b)) < 3e-6


def test_what_large_pictures_are_activated_to_is_not_held():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 256, 512, 128), (3, 3, 128, 8), (8,))]
    function = jax.jit(lambda x, kernel, bias: convolve(x, kernel, bias, before=jnp.tanh))
    text = lambda platform: export.export(function, platforms=[platform])(*shapes).mlir_module()
    assert ["stablehlo.while" in text(platform) for platform in ("cpu", "cuda", "tpu")] == [True, False, False]
    if jax.default_backend() == "cpu":
        held = function.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
        assert held < 0.6 * 4 * shapes[0].size


def test_winograd_is_differentiated_both_ways():
    x, kernel, dx = draw(1, 4, 6, 3), draw(3, 3, 3, 2, seed=1), draw(1, 4, 6, 3, seed=2)
    tangent = jax.jvp(lambda x: winograd(x, kernel), (x,), (dx,))[1]
    assert error(tangent, definition(dx, kernel)) < 2e-6
    inner = lambda way: jax.grad(lambda x: jnp.vdot(jax.grad(lambda x: (way(x, kernel) ** 3).sum())(x), dx))(x)
    assert error(inner(winograd), np.asarray(inner(direct))) < 1e-5


def test_transformed_kernels_are_not_held():
    """Six convolutions take the memory of two: their kernels are transformed when their turn comes."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 16, 16, 256), (6, 3, 3, 256, 256))]

    def several(count):
        def function(x, kernels):
            for i in range(count):
                x = convolve(x, kernels[i], jnp.zeros(256))
            return x

        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    if jax.default_backend() == "cpu":
        assert several(6) < 1.5 * several(2)


def test_what_is_not_finite_stays_in_its_picture():
    x, kernel = draw(2, 16, 16, 256), draw(3, 3, 256, 4, seed=1)
    wanted = winograd(x, kernel)[1]
    for value in (np.inf, -np.inf, np.nan, 3e38):
        x[0, 0, 0, 0] = value
        np.testing.assert_array_equal(winograd(x, kernel)[1], wanted)
