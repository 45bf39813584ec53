"""Flash attention for TPUs (arXiv 2205.14135), forward and backward, as Pallas kernels with the tokens in the lanes.

q is [B, H, D, T], k and v are [B, H, D, S]. Heads are 40, 64, 80 or 160 features wide: such a width fills the rows of a
tile, but would not fill its 128 lanes. A projection writes [B, C, T] as easily as [B, T, C], so nothing is padded or
transposed on the way. Logits are [S, T], float32. Only one number a query is kept of them, lse = log sum_s exp(logits),
float32 [B, H, 1, T], from which the backward pass computes them again:

    p = exp(scale k^T q - lse)                 y = v p
    ds = scale p (v^T dy - sum_d y dy)         dq = k ds     dk = q ds^T     dv = dy p^T

Exponentials are powers of 2, since those are what a TPU has. The factor log2(e) is part of the scale, so that it does
not cost a product in every exponential.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sdjax.types import Array

ROWS = ((0,), (0,))  # contracts D of two arrays [D, ...]
LANES = ((1,), (1,))  # contracts the tokens of two arrays [..., tokens]
PLAIN = ((1,), (0,))  # a plain matrix product
LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """How a length of tokens is divided: into `count` blocks in the grid, and each block into pieces of `piece` tokens.
    The end of the last block may be padding."""

    length: int
    count: int
    block: int
    piece: int

    @property
    def padding(self) -> int:
        return self.count * self.block - self.length


def blocks(length: int, most: int, piece: int) -> Blocks:
    """Divides `length` into blocks of at most `most` tokens. Each holds whole pieces of at most `piece` tokens. If
    there are several pieces, both sizes are multiples of 128."""
    if length <= piece:
        return Blocks(length, 1, length, length)
    pieces = math.ceil(length / piece)
    piece = math.ceil(length / pieces / 128) * 128
    least = math.ceil(pieces * piece / most)
    count = next(n for n in range(least, pieces + 1) if pieces % n == 0)
    return Blocks(length, count, pieces // count * piece, piece)


def product(a: Array, b: Array, axes: tuple) -> Array:
    """Returns the product a b over `axes` as float32. float32 factors are not rounded to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def products(k: Array, q: Array, first: Array, keys: Blocks) -> Array:
    """Returns k^T q [keys, queries], with -inf for keys past the end. `first` is the index of the first key in k."""
    found = product(k, q, ROWS)
    if keys.padding:
        row = first + lax.broadcasted_iota(jnp.int32, found.shape, 0)
        found = jnp.where(row < keys.length, found, -jnp.inf)
    return found


def forward_kernel(q_ref, k_ref, v_ref, y_ref, lse_ref, top, total, mean, *, keys: Blocks):
    """One block of queries against one block of keys: it keeps a running maximum and sums relative to it."""
    j, scale = pl.program_id(3), LOG2E * q_ref.shape[2] ** -0.5

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full_like(top, -jnp.inf)
        total[...] = jnp.zeros_like(total)
        mean[...] = jnp.zeros_like(mean)

    def piece(n, _):
        here = pl.ds(n * keys.piece, keys.piece)
        v = v_ref[0, 0, :, here]
        found = products(k_ref[0, 0, :, here], q_ref[0, 0], j * keys.block + n * keys.piece, keys)
        higher = jnp.maximum(top[...], scale * found.max(0, keepdims=True))
        p, shrink = jnp.exp2(scale * found - higher), jnp.exp2(top[...] - higher)
        top[...] = higher
        total[...] = shrink * total[...] + p.sum(0, keepdims=True)
        mean[...] = shrink * mean[...] + product(v, p.astype(v.dtype), PLAIN)

    lax.fori_loop(0, keys.block // keys.piece, piece, None)

    @pl.when(j == keys.count - 1)
    def _():
        y_ref[0, 0] = (mean[...] / total[...]).astype(y_ref.dtype)
        lse_ref[0, 0] = top[...] / LOG2E + jnp.log(total[...])


def backward_kernel(
    q_ref, k_ref, v_ref, y_ref, lse_ref, dy_ref, dq_ref, dk_ref, dv_ref, dq, dk, dv, *, queries: Blocks, keys: Blocks
):
    """One block of keys against one block of queries after the other. dq of all queries stays on the chip until the
    last block of keys."""
    j, i = pl.program_id(2), pl.program_id(3)
    mine = pl.ds(i * queries.block, queries.block) if queries.count > 1 else slice(None)

    @pl.when(i == 0)
    def _():
        dk[...], dv[...] = jnp.zeros_like(dk), jnp.zeros_like(dv)

    @pl.when(j == 0)
    def _():
        dq[:, mine] = jnp.zeros(q_ref.shape[2:], jnp.float32)

    q, dy, lse, scale = q_ref[0, 0], dy_ref[0, 0], LOG2E * lse_ref[0, 0], q_ref.shape[2] ** -0.5
    inner = (y_ref[0, 0].astype(jnp.float32) * dy.astype(jnp.float32)).sum(0, keepdims=True)

    def piece(n, _):
        here = pl.ds(n * keys.piece, keys.piece)
        k, v = k_ref[0, 0, :, here], v_ref[0, 0, :, here]
        p = jnp.exp2(LOG2E * scale * products(k, q, j * keys.block + n * keys.piece, keys) - lse)
        ds = (scale * p * (product(v, dy, ROWS) - inner)).astype(q.dtype)
        dv[:, here] += product(dy, p.astype(dy.dtype), LANES)
        dk[:, here] += product(q, ds, LANES)
        dq[:, mine] += product(k, ds, PLAIN)

    lax.fori_loop(0, keys.block // keys.piece, piece, None)

    @pl.when(i == queries.count - 1)
    def _():
        dk_ref[0, 0], dv_ref[0, 0] = dk[...].astype(dk_ref.dtype), dv[...].astype(dv_ref.dtype)

    @pl.when(j == keys.count - 1)
    def _():
        dq_ref[0, 0, :, mine] = dq[:, mine].astype(dq_ref.dtype)


def plan(q: Array, k: Array) -> tuple[Blocks, Blocks]:
    """Returns the Blocks of the queries and of the keys. The keys of a head stay on the chip as one block as long as
    they take no more than half a megabyte."""
    width = q.shape[2] * q.dtype.itemsize
    return blocks(q.shape[3], 512, 512), blocks(k.shape[3], max(512, 2**19 // width), 512)


def pad(x: Array, tokens: Blocks) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, tokens.padding))) if tokens.padding else x


def specs(width: int, queries: Blocks, keys: Blocks, place: callable) -> tuple:
    """Returns three BlockSpecs: for the features of a block of queries, for those of a block of keys, and for one
    number a query. place(*grid indices) -> (block of queries, block of keys)."""
    spec = lambda rows, tokens, which: pl.BlockSpec(
        (1, 1, rows, tokens.block), lambda b, h, *ij: (b, h, 0, place(*ij)[which])
    )
    return spec(width, queries, 0), spec(width, keys, 1), spec(1, queries, 0)


def cost(q: Array, k: Array, products: int, *arrays: Array) -> pl.CostEstimate:
    """Returns the cost of `products` matrix products and one exponential a logit. `arrays` are read or written once."""
    logits = math.prod(q.shape[:2]) * q.shape[3] * k.shape[3]
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=2 * products * logits * q.shape[2], transcendentals=logits, bytes_accessed=moved)


def forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Returns (y [B, H, D, T], lse float32 [B, H, 1, T]) of attention; see the top of the file for the shapes."""
    (b, h, d, t), (queries, keys) = q.shape, plan(q, k)
    q, k, v = pad(q, queries), pad(k, keys), pad(v, keys)
    one, other, single = specs(d, queries, keys, lambda i, j: (i, j))
    out = jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, h, 1, q.shape[3]), jnp.float32)
    scratch = [pltpu.VMEM((rows, queries.block), jnp.float32) for rows in (1, 1, d)]
    again = [k, v] * (queries.count if keys.count > 1 else 1)
    y, lse = pl.pallas_call(
        partial(forward_kernel, keys=keys),
        out,
        grid=(b, h, queries.count, keys.count),
        in_specs=[one, other, other],
        out_specs=[one, single],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=cost(q, k, 2, q, *again, *out),
        name="flash_forward",
    )(q, k, v)
    return y[..., :t], lse[..., :t]


def backward(q: Array, k: Array, v: Array, y: Array, lse: Array, dy: Array) -> tuple[Array, Array, Array]:
    """Returns (dq, dk, dv), shaped as q, k and v, from the forward pass' y and lse and the gradient dy of y."""
    (b, h, d, t), s, (queries, keys) = q.shape, k.shape[3], plan(q, k)
    q, y, lse, dy = (pad(x, queries) for x in (q, y, lse, dy))
    k, v = pad(k, keys), pad(v, keys)
    one, other, single = specs(d, queries, keys, lambda j, i: (i, j))
    whole = pl.BlockSpec((1, 1, d, q.shape[3]), lambda b, h, j, i: (b, h, 0, 0))
    out = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    scratch = [pltpu.VMEM((d, length), jnp.float32) for length in (q.shape[3], keys.block, keys.block)]
    again = [q, y, lse, dy] * (keys.count if queries.count > 1 else 1)
    dq, dk, dv = pl.pallas_call(
        partial(backward_kernel, queries=queries, keys=keys),
        out,
        grid=(b, h, keys.count, queries.count),
        in_specs=[one, other, other, one, single, one],
        out_specs=[whole, other, other],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        cost_estimate=cost(q, k, 5, *again, k, v, *out),
        name="flash_backward",
    )(q, k, v, y, lse, dy)
    return dq[..., :t], dk[..., :s], dv[..., :s]
