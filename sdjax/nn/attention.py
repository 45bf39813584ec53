"""Attention: the one formula, and the transformer blocks of the UNet.

softmax(q k^T / sqrt(d)) v (arXiv 1706.03762) with float32 logits and softmax.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.nn.layers import ACTIVATIONS, GroupNorm, LayerNorm
from sdjax.types import Array


def attention(q: Array, k: Array, v: Array, heads: int, causal: bool = False, upcast: bool = False) -> Array:
    """q [B, T, C], k and v [B, S, C], split into `heads` -> [B, T, C]. `causal`: row i sees columns <= i.

    `upcast` multiplies q k^T in float32 inputs; the softmax is always float32.
    """
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    q, k, v = split(q), split(k), split(v)
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("bthd,bshd->bhts", q * scale, k, preferred_element_type=jnp.float32)
    if causal:
        mask = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*q.shape[:2], -1)


def attention_weights(q: Array, k: Array, heads: int) -> Array:
    """softmax(q k^T / sqrt(d)) alone, the mean over the heads: float32 [B, T, S]. Only for looking at it."""
    q, k = (x.reshape(*x.shape[:2], heads, -1).astype(jnp.float32) for x in (q, k))
    return jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q * q.shape[-1] ** -0.5, k), axis=-1).mean(1)


class Attention(nn.Module):
    """Multi-head attention of x to context (or to itself). Applied with mutable=["maps"], it leaves its weights for a
    context there; otherwise they are never computed."""

    heads: int
    qkv_bias: bool
    dtype: jnp.dtype
    causal: bool = False
    upcast: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """x: [B, T, C]; context: [B, S, D] or None -> [B, T, C]."""
        watched = context is not None and self.is_mutable_collection("maps") and not self.is_initializing()
        context = x if context is None else context
        width = x.shape[-1]
        project = lambda name: nn.Dense(width, use_bias=self.qkv_bias, dtype=self.dtype, name=name)
        q, k, v = project("q")(x), project("k")(context), project("v")(context)
        if watched:
            self.sow("maps", "weights", attention_weights(q, k, self.heads))
        y = attention(q, k, v, self.heads, self.causal, self.upcast)
        return nn.Dense(width, dtype=self.dtype, name="out")(y)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, GEGLU feed-forward (arXiv 2002.05202), each pre-normed and residual."""

    heads: int
    upcast: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        attend = lambda name: Attention(self.heads, False, self.dtype, upcast=self.upcast, name=name)
        x = x + attend("self")(LayerNorm(name="norm1")(x))
        x = x + attend("cross")(LayerNorm(name="norm2")(x), context)
        h = nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="ff_in")(LayerNorm(name="norm3")(x))
        value, gate = jnp.split(h, 2, axis=-1)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="ff_out")(value * ACTIVATIONS["gelu"](gate))


class SpatialTransformer(nn.Module):
    """[B, H, W, C] through one TransformerBlock over its H W tokens. Its GroupNorm's eps is 1e-6."""

    heads: int
    groups: int
    upcast: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        channels = x.shape[-1]
        h = GroupNorm(self.groups, 1e-6, name="norm")(x)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_in")(h)
        h = TransformerBlock(self.heads, self.upcast, self.dtype, name="block")(
            h.reshape(x.shape[0], -1, channels), context)
        zeros = nn.initializers.zeros_init()
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="proj_out")(h.reshape(x.shape))
        return x + h
