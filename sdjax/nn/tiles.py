"""Runs large pictures through the VAE one tile at a time, in the memory that one tile takes.

Tiles overlap, and in the overlap each one fades into the next. The result is not bit for bit that of the whole picture,
because the norms and the attention of a tile see only that tile. Purely local operations give exactly the same result.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.types import Array


def in_tiles(
    function: Callable[[Array], Array], x: Array, tile: int, overlap: int, unit: int = 1, most: int = 0
) -> Array:
    """Returns function(x) for x [B, H, W, C], computed tile by tile and blended.

    function: maps [B, h, w, C] to [B, k h, k w, D] for a fixed k, a ratio of whole numbers.
    tile: side of a tile in pixels of x; a side of x shorter than this is not divided.
    overlap: least overlap of two neighbouring tiles.
    unit: tile, overlap, H and W must be multiples of it; the tiles then start at multiples of it too.
    most: where H W is no more than this, x is not divided at all.
    """
    if x.shape[1] * x.shape[2] <= most:
        return function(x)
    sides = [min(tile, side) for side in x.shape[1:3]]
    starts = [
        places(side // unit, size // unit, overlap // unit) * unit
        for side, size in zip(x.shape[1:3], sides, strict=True)
    ]
    out = jax.eval_shape(function, jax.ShapeDtypeStruct((len(x), *sides, x.shape[3]), x.dtype))
    scaled = lambda n: n * out.shape[1] // sides[0]
    windows = [
        jnp.stack([window(scaled(size), scaled(overlap), start > 0, start < side - size) for start in row])
        for side, size, row in zip(x.shape[1:3], sides, starts, strict=True)
    ]

    def add(sums: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], None]:
        i, j = n // len(starts[1]), n % len(starts[1])
        top, left = jnp.asarray(starts[0])[i], jnp.asarray(starts[1])[j]
        part = function(jax.lax.dynamic_slice(x, (0, top, left, 0), (len(x), *sides, x.shape[3])))
        weight = (windows[0][i][:, None] * windows[1][j])[None, ..., None]
        at = (0, scaled(top), scaled(left), 0)
        put = lambda total, value: jax.lax.dynamic_update_slice(
            total, jax.lax.dynamic_slice(total, at, value.shape) + value, at
        )
        return (put(sums[0], weight * part), put(sums[1], weight)), None

    shape = (len(x), *map(scaled, x.shape[1:3]))
    zeros = jnp.zeros((*shape, out.shape[3]), out.dtype), jnp.zeros((1, *shape[1:], 1), out.dtype)
    (total, weight), _ = jax.lax.scan(add, zeros, jnp.arange(len(starts[0]) * len(starts[1])))
    return total / weight


def places(side: int, tile: int, overlap: int) -> np.ndarray:
    """Returns where the tiles along one side start, int32. It takes the fewest tiles that overlap by at least `overlap`
    and reach both ends, and spreads them evenly."""
    count = 1 if side <= tile else math.ceil((side - overlap) / (tile - overlap))
    return np.round(np.linspace(0, side - tile, count)).astype(np.int32)


def window(size: int, overlap: int, before: bool, after: bool) -> Array:
    """Returns a tile's weights along one side, float32 [size]. They rise over `overlap` if a tile comes before it, and
    fall over `overlap` if a tile comes after it."""
    rise = np.minimum(1.0, (np.arange(size) + 0.5) / overlap)
    return jnp.asarray((rise if before else 1.0) * (rise[::-1] if after else np.ones(size)), jnp.float32)
