"""3x3 convolutions of [B, H, W, C], in forms that a CPU or a TPU computes faster than XLA's own convolution.

Every function here computes the same convolution, reordered for one backend. Shapes with no special case use XLA's.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from sdjax.nn.kernels.backends import by_platform, devices_sharing
from sdjax.types import Array

ROWS = (0, 0), (1, 1)  # the padding of a band whose neighbouring rows are already there


def convolve(
    x: Array,
    kernel: Array,
    bias: Array,
    stride: int = 1,
    padding=((1, 1), (1, 1)),
    before: Callable[[Array], Array] | None = None,
) -> Array:
    """3x3 convolution: x [B, H, W, C], kernel [3, 3, C, D], bias [D] -> [B, H', W', D].

    padding: ((top, bottom), (left, right)).
    before: a function that treats each pixel alone; if given, before(x) is convolved instead of x.
    """
    if before is not None:
        whole = lambda x, kernel, bias: convolve(before(x), kernel, bias, stride, padding)
        if stride != 1 or padding != ((1, 1), (1, 1)) or not is_large(x):
            return whole(x, kernel, bias)
        bands = lambda x, kernel, bias: by_bands(x, before, lambda band, _: direct(band, kernel, padding=ROWS) + bias)
        return by_platform(x, kernel, bias, cpu=bands, default=whole)
    whole, columns = (partial(way, stride=stride, padding=padding) for way in (direct, by_columns))
    (b, h, w, channels), cpu = x.shape, whole
    if stride == 1 and padding == ((1, 1), (1, 1)):
        wide = channels >= 256 and kernel.shape[-1] >= 64 and x.dtype == jnp.float32
        if wide and h % 2 == w % 2 == 0 and 16**2 <= h * w <= 128**2:
            cpu = winograd
        elif channels >= 512 and 5 * h * w <= channels:
            cpu = as_product
    return by_platform(x, kernel, cpu=cpu, tpu=whole if fills_a_tpu(b) else columns, default=whole) + bias


def convolve_enlarged(x: Array, kernel: Array, bias: Array, size: tuple[int, int] | None = None) -> Array:
    """`upsample_nearest`, then `convolve` with kernel [3, 3, C, D] and bias [D]: [B, H, W, C] -> [B, 2H, 2W, D].

    size: of the result, (2H or 2H - 1, 2W or 2W - 1); the last row or column is left out before the convolution.
    """
    if size is not None and size != (2 * x.shape[1], 2 * x.shape[2]):
        return convolve(upsample_nearest(x)[:, : size[0], : size[1]], kernel, bias)
    enlarged = lambda way: lambda x, kernel, bias: convolve(way(x), kernel, bias)
    whole, b, h, w = enlarged(upsample_nearest), *x.shape[:3]
    return by_platform(
        x,
        kernel,
        bias,
        cpu=by_phase if h * w >= 64 else whole,
        tpu=whole if fills_a_tpu(b) else enlarged(side_by_side),
        default=whole,
    )


def upsample_nearest(x: Array) -> Array:
    """[B, H, W, C] -> [B, 2H, 2W, C], each pixel repeated."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def side_by_side(x: Array) -> Array:
    """The same as `upsample_nearest`. It repeats each pixel in the channels first; a TPU turns these into columns in
    half the time."""
    (b, h, w, channels), twice = x.shape, jnp.concatenate([x, x], -1)
    return twice.reshape(b, h, 2 * w, channels).repeat(2, axis=1)


def direct(x: Array, kernel: Array, stride: int = 1, padding=((1, 1), (1, 1))) -> Array:
    """XLA's own convolution, without bias."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def fills_a_tpu(batch: int) -> bool:
    """Does this batch use a TPU well? A TPU convolves eight pictures at once. So a device's part of the batch must hold
    eight or more, and the places that stay empty in the last eight must be at most a fifth of it."""
    batch //= devices_sharing(batch)
    return batch >= 8 and 5 * (-batch % 8) <= batch


def by_columns(x: Array, kernel: Array, stride: int = 1, padding=((1, 1), (1, 1))) -> Array:
    """Convolution with the picture's columns as the batch, for TPUs.

    The three columns that an output needs are concatenated along the channels, which leaves a convolution along the
    rows with three taps. For a batch below eight, XLA's TPU compiler makes a larger batch by cutting pictures apart,
    and copies and pads them at every step. Here it has nothing to cut, and the pixels lie as attention takes them.
    """

    @jax.checkpoint  # else the backward pass would keep the three columns instead of x
    def sums(x: Array, kernel: Array) -> Array:
        channels, padded = x.shape[3], jnp.pad(x, ((0, 0), (0, 0), padding[1], (0, 0)))
        places = padded.shape[2] - 2
        meeting = jnp.concatenate([padded[:, :, j : j + places : stride] for j in range(3)], -1)
        return jax.lax.conv_general_dilated(
            meeting,
            kernel.reshape(1, 3, 3 * channels, -1),
            (1, stride),
            ((0, 0), padding[0]),
            dimension_numbers=("BHNC", "BHIO", "BHNC"),
        )

    return sums(x, kernel)


def is_large(x: Array, least: int = 2**24) -> bool:
    """Is one picture of x so large that a CPU computes it with `by_bands`? `least` counts values; H divides by 8."""
    return x[0].size >= least and x.shape[1] % 8 == 0


def by_bands(
    x: Array,
    before: Callable[[Array], Array],
    step: Callable[[Array, Array], Array],
    in_place: bool = False,
    rows: int = 64,
) -> Array:
    """Walks over x [B, H, W, C] in bands of rows and stacks step(active, band) of all bands, one below the other.

    Intermediate results never exist for more than one band.

    before: a function that treats each pixel alone.
    step: takes `active`, which is before(...) of the band with one more row at either end (zeros outside of x), and
        the band itself.
    in_place: write the result over x; it must have x's shape.
    rows: the largest number of rows in a band; the bands have equal heights.
    """
    b, height, w, channels = x.shape
    rows = max(n for n in range(1, rows + 1) if height % n == 0)
    if rows == height:
        return step(jnp.pad(before(x), ((0, 0), (1, 1), (0, 0), (0, 0))), x)
    above = x[:, rows - 1 :: rows]  # each band's last row: in place, it is overwritten before the next band needs it

    def made(source: Array, i: Array) -> Array:
        row = lambda x, at, rows=1: jax.lax.dynamic_slice(x, (0, at, 0, 0), (b, rows, w, channels))
        band, below = row(source, i * rows, rows), row(source, jnp.minimum((i + 1) * rows, height - 1))
        active = before(jnp.concatenate([row(above, jnp.maximum(i - 1, 0)), band, below], 1))
        number = i * rows - 1 + jnp.arange(rows + 2)[:, None, None]
        return step(jnp.where((number >= 0) & (number < height), active, 0), band)

    def loop(i: Array, y: Array) -> Array:
        band = made(y if in_place else x, i)
        return jax.lax.dynamic_update_slice(y, band, (0, i * band.shape[1], 0, 0))

    if in_place:
        return jax.lax.fori_loop(0, height // rows, loop, x)
    band = jax.eval_shape(made, x, 0)
    some = jax.lax.stop_gradient(before(x[:1, :1, :1])[0, 0, 0, 0])  # XLA would allocate zeros at the program's start
    y = jnp.full((b, height // rows * band.shape[1], *band.shape[2:]), some, band.dtype)
    return jax.lax.fori_loop(0, height // rows, loop, y)


def as_product(x: Array, kernel: Array) -> Array:
    """Convolution as one matrix product over the nine neighbours, concatenated along the channels.

    On small pictures with many channels most of the time goes into reading the kernel, and a product reads it once.
    """
    (_, h, w, channels), padded = x.shape, jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(neighbours, -1) @ kernel.reshape(9 * channels, -1)


def by_phase(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolves the enlarged picture without making it: x [B, H, W, C] -> [B, 2H, 2W, D].

    Some of the 3 x 3 neighbours in an enlarged picture are the same pixel. For each of the four places in a doubled
    pixel, this leaves a 2x2 convolution of the small picture with sums of the kernel's rows and columns.
    """
    kernel = after(x, kernel)

    def halves(kernel: Array, axis: int) -> list[Array]:
        a, b, c = jnp.split(kernel, 3, axis)
        return [jnp.concatenate([a, b + c], axis), jnp.concatenate([a + b, c], axis)]

    parts = [halves(row, 1) for row in halves(kernel, 0)]

    def enlarged(band: Array, _: Array) -> Array:
        rows = band.shape[1] - 2
        part = lambda i, j: direct(band[:, i : i + rows + 1], parts[i][j], padding=((0, 0), (1 - j, j)))
        y = jnp.stack([jnp.stack([part(i, j) for j in range(2)], 3) for i in range(2)], 2)
        return y.reshape(len(x), 2 * rows, 2 * x.shape[2], -1) + bias

    return by_bands(x, lambda x: x, enlarged, rows=64 if is_large(x) else x.shape[1])


def after(x: Array, y: Array) -> Array:
    """Returns y, but makes it depend on x, so that XLA does not compute it before x is there.

    XLA's scheduler computes first what is ready first, such as the transformed kernels of a whole network, which then
    fill the memory.
    """
    never = x[0, 0, 0, 0] - 1 > x[0, 0, 0, 0]
    return jnp.where(never, 0, y)


@jax.custom_jvp
def winograd(x: Array, kernel: Array) -> Array:
    """Winograd's convolution F(2 x 2, 3 x 3) (arXiv 1509.09308) for even H and W: 16 products for 4 outputs, not 36.

    A tile of 4 x 4 inputs gives 2 x 2 outputs y = A^T [(G g G^T) * (B^T d B)] A. Each of the tile's 16 places is one
    matrix product over the channels, for all tiles at once.
    """
    (b, h, w, channels), padded = x.shape, jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    factors = jax.lax.sort(after(x, jnp.array([0.25, 0.5, 1.0], x.dtype)))  # else XLA repeats `after` in all 16 kernels

    def transform(d: Array, axis: int) -> list[Array]:  # B^T d: windows of four along an axis, two apart
        d0, d1, d2, d3 = (jax.lax.slice_in_dim(d, i, i + x.shape[axis] - 1, 2, axis) for i in range(4))
        return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]

    def spread(g: Array) -> list[Array]:  # G g, without G's halving of the two in the middle (`factors` does it)
        return [g[0], g[0] + g[1] + g[2], g[0] - g[1] + g[2], g[2]]

    def gather(m: list[Array]) -> list[Array]:  # A^T m
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    products, middle = [], (1, 2)
    for i, (row, weights) in enumerate(zip(transform(padded, 1), spread(kernel), strict=True)):
        places = enumerate(zip(transform(row, 2), spread(weights), strict=True))
        products.append(
            gather([d.reshape(-1, channels) @ (factors[2 - (i in middle) - (j in middle)] * g) for j, (d, g) in places])
        )
    columns = [gather([row[j] for row in products]) for j in range(2)]  # [j][i]: outputs of row i, column j of a tile
    shaped = [[columns[j][i].reshape(b, h // 2, w // 2, -1) for j in range(2)] for i in range(2)]
    return jnp.stack([jnp.stack(row, 3) for row in shaped], 2).reshape(b, h, w, -1)


@partial(winograd.defjvp, symbolic_zeros=True)
def winograd_jvp(values, changes):
    """The derivative of `direct`. Winograd's own would have to keep the transformed tiles, four times the size of x."""
    (x, kernel), (dx, dkernel) = values, changes
    parts = [] if isinstance(dx, SymbolicZero) else [direct(dx, kernel)]
    parts += [] if isinstance(dkernel, SymbolicZero) else [direct(x, dkernel)]
    return winograd(x, kernel), sum(parts)
