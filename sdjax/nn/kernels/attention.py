"""Attention: the one formula, and how each backend computes it.

The formula is softmax(q k^T / sqrt(d)) v (arXiv 1706.03762) with float32 logits and softmax. Its cost is the T x S
logits of every head: 268 million of them in one layer at 512 px, batch 2. `attention` looks up in TABLE how a backend
avoids keeping all of them in memory.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax.nn.kernels import flash as kernels  # early: Pallas adds to what JAX' caches go by, from jax 0.12 on
from sdjax.nn.kernels.backends import by_platform, split_by_batch
from sdjax.types import Array

#: text states [B, S, D], or the keys and values that a layer projects them to, and more pairs of these behind them
Context = Array | tuple[Array, ...]


def attention(q: Array, k: Array, v: Array, heads: int, causal: bool = False, upcast: bool = False) -> Array:
    """Multi-head attention: q [B, T, C], k and v [B, S, C] -> [B, T, C].

    heads: how many heads C is split into.
    causal: query i sees only keys <= i.
    upcast: cast q and k to float32 before q k^T; logits and softmax are float32 in any case.

    The program holds an implementation for every backend; the backend that it is lowered for takes its own (`choose`).
    """
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    size = Size(q.shape[0] * heads, q.shape[1], k.shape[1], q.shape[3], q.dtype, causal)
    chosen = {platform: choose(platform, size) for platform in TABLE}
    ways = {way: partial(way, causal=causal, upcast=upcast) for way in chosen.values()}
    y = by_platform(q, k, v, **{platform: ways[way] for platform, way in chosen.items()})
    return y.reshape(*q.shape[:2], -1)


# ---- the implementations: q [B, T, H, D], k and v [B, S, H, D] -> [B, T, H, D]


def plain(q: Array, k: Array, v: Array, causal: bool = False, upcast: bool = False) -> Array:
    """Computes the formula as it stands, with all logits in memory at once."""
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    logits = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def blocked(q: Array, k: Array, v: Array, causal: bool = False, upcast: bool = False, most: int = 2**22) -> Array:
    """Computes blocks of rows, for CPUs. The backward pass computes each block again.

    most: about the largest number of logits in a block of one head. Small heads are taken several at a time, with half
        as many logits together.
    """
    assert not causal
    (b, t, h, d), s = q.shape, k.shape[1]
    scale = d**-0.5
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    q, k, v = (x.swapaxes(1, 2).reshape(b * h, x.shape[1], d) for x in (q, k, v))
    count = math.ceil(t * s / most)
    rows = math.ceil(t / count)

    @jax.checkpoint
    def block(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.dot(q, k.T, preferred_element_type=jnp.float32)
        weights = jnp.exp(scale * (logits - logits.max(-1, keepdims=True)))
        y = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)

    def head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        q = jnp.pad(q, ((0, count * rows - t), (0, 0))).reshape(count, rows, d)
        return jax.lax.map(lambda q: block(q, k, v), q).reshape(-1, d)[:t]

    several = min(b * h, most // (2 * t * s))
    y = jax.lax.map(head, (q, k, v), batch_size=several if several > 1 else None)  # batch_size 1 batches the products
    return y.reshape(b, h, t, d).swapaxes(1, 2)


def blocked_large(q: Array, k: Array, v: Array, causal: bool = False, upcast: bool = False, most: int = 2**23) -> Array:
    """Computes blocks of rows of all heads at once, for accelerators. The backward pass computes each block again.

    Small blocks would leave an accelerator idle, and blocks of heads would not match the way XLA has split the batch
    over the devices.

    most: about the largest number of logits in a block.
    """
    assert not causal
    (b, t, h, d), s = q.shape, k.shape[1]
    count = math.ceil(b * h * t * s / most)
    rows = math.ceil(t / count)
    q = jnp.pad(q, ((0, 0), (0, count * rows - t), (0, 0), (0, 0))).reshape(b, count, rows, h, d)
    block = jax.checkpoint(partial(plain, upcast=upcast))
    y = jax.lax.map(lambda q: block(q, k, v), q.swapaxes(0, 1))
    return y.swapaxes(0, 1).reshape(b, count * rows, h, d)[:, :t]


def cudnn(q: Array, k: Array, v: Array, causal: bool = False, upcast: bool = False) -> Array:
    """cuDNN's flash attention (arXiv 2307.08691), for NVIDIA GPUs. Its logits are float32."""
    assert not causal
    try:
        return cudnn_any(q, k, v)
    except (RuntimeError, NotImplementedError):  # no cuDNN here, or heads too wide for this GPU; only JAX's own
        return blocked_large(q, k, v, causal, upcast)  # checks know that, and they raise


@jax.custom_vjp
def cudnn_any(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's attention for sequences of any length. JAX refuses gradients if a length is odd, such as a prompt's 77,
    so the gradient is taken with one token of padding (`cudnn_even`)."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def cudnn_even(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's attention, with odd lengths padded by one token that does not count."""
    lengths, even = {}, lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    if q.shape[1] % 2 or k.shape[1] % 2:  # cuDNN is told the true lengths
        lengths = {
            name: jnp.full(x.shape[0], x.shape[1], jnp.int32)
            for name, x in (("query_seq_lengths", q), ("key_value_seq_lengths", k))
        }
    y = jax.nn.dot_product_attention(even(q), even(k), even(v), implementation="cudnn", **lengths)
    return y[:, : q.shape[1]]


cudnn_any.defvjp(lambda q, k, v: jax.vjp(cudnn_even, q, k, v), lambda gradients, dy: gradients(dy))


def flash(q: Array, k: Array, v: Array, causal: bool = False, upcast: bool = False) -> Array:
    """The Pallas kernels of flash.py, for TPUs. Their logits are float32."""
    assert not causal
    q, k, v = (x.transpose(0, 2, 3, 1) for x in (q, k, v))  # costs nothing: the projections write this layout directly
    return flash_split(q, k, v).transpose(0, 3, 1, 2)


@jax.custom_vjp
def flash_split(q: Array, k: Array, v: Array) -> Array:
    """`flash` in the kernels' own layout, with their backward pass.

    q [B, H, D, T], k and v [B, H, D, S] -> [B, H, D, T].
    """
    return flash_forward(q, k, v)[0]


def flash_forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    return split_by_batch(kernels.forward, q, k, v)


def flash_kept(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
    y, lse = flash_forward(q, k, v)
    return y, (q, k, v, y, lse)


def flash_backward(kept: tuple, dy: Array) -> tuple[Array, Array, Array]:
    return split_by_batch(kernels.backward, *kept, dy)


flash_split.defvjp(flash_kept, flash_backward)


# ---- the choice of an implementation


class Size(NamedTuple):
    """What the choice of an implementation depends on."""

    heads: int  # heads times batch
    t: int
    s: int
    width: int  # of a head
    dtype: jnp.dtype
    causal: bool

    @property
    def logits(self) -> int:
        return self.heads * self.t * self.s

    @property
    def bytes(self) -> int:
        """Bytes of one head's queries or keys, whichever are more."""
        return max(self.t, self.s) * self.width * self.dtype.itemsize


HALF = (jnp.bfloat16, jnp.float16)

ALWAYS = lambda size: True

#: platform -> pairs of (implementation, condition); the first whose condition holds is taken. Only the text towers use
#: causal attention, over 77 tokens, which `plain` computes.
TABLE: dict[str, tuple[tuple[Callable, Callable[[Size], bool]], ...]] = {
    "cpu": ((plain, lambda size: size.causal or size.t * size.s <= 2**14), (blocked, ALWAYS)),
    "cuda": (
        (plain, lambda size: size.causal),
        (cudnn, lambda size: size.dtype in HALF and size.width % 8 == 0 and size.width <= 256),
        (plain, lambda size: size.logits <= 2**23),
        (blocked_large, ALWAYS),
    ),
    "tpu": (
        (plain, lambda size: size.causal or size.logits <= 2**20),
        (flash, lambda size: size.dtype != jnp.float16 and size.bytes <= 3 * 2**19),
        (blocked_large, ALWAYS),
    ),
    "default": ((plain, lambda size: size.causal or size.logits <= 2**23), (blocked_large, ALWAYS)),
}


def choose(platform: str, size: Size) -> Callable:
    """Returns the first implementation in the platform's row of TABLE whose condition holds."""
    return next(way for way, fits in TABLE[platform] if fits(size))


def attention_weights(q: Array, k: Array, heads: int) -> Array:
    """Returns the weights softmax(q k^T / sqrt(d)), averaged over the heads: float32 [B, T, S]. Use it only to look at
    them."""
    q, k = (x.reshape(*x.shape[:2], heads, -1).astype(jnp.float32) for x in (q, k))
    return jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q * q.shape[-1] ** -0.5, k), axis=-1).mean(1)
