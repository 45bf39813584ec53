"""Attention, the transformer block, and the spatial transformer (arXiv 2112.10752, appendix E.2.1)."""

import flax.linen as nn
import jax.numpy as jnp

from sdjax.nn.kernels.attention import Context, attention, attention_weights
from sdjax.nn.layers import ACTIVATIONS, Dense, GroupNorm, LayerNorm, lecun_normal, some_at_a_time
from sdjax.types import Array


class Attention(nn.Module):
    """Multi-head attention of x to a context, or to x itself.

    Apply the module with mutable=["maps"] to collect the cross-attention weights there; otherwise they are never
    computed.
    """

    heads: int
    qkv_bias: bool
    dtype: jnp.dtype
    causal: bool = False
    upcast: bool = False
    zero_init: bool = False  # the last layer starts at zero
    inner: int | None = None  # width of all heads together; None: x's
    out_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, context: Context | None = None) -> Array:
        """x [B, T, C] -> [B, T, C].

        context: text states [B, S, D], or their (keys, values), [B, S, C] each; None is self-attention. Behind these
            there may be more keys and values; what each pair gives is added to what the first one gives.
        """
        watched = context is not None and self.is_mutable_collection("maps") and not self.is_initializing()
        context = x if context is None else context
        width = x.shape[-1]
        project = lambda name: Dense(self.inner or width, self.dtype, self.qkv_bias, name=name)
        k, v, *more = context if isinstance(context, tuple) else (project("k")(context), project("v")(context))
        q = project("q")(x)
        if watched:
            self.sow("maps", "weights", attention_weights(q, k, self.heads))
        y = attention(q, k, v, self.heads, self.causal, self.upcast)
        for k, v in zip(more[::2], more[1::2], strict=True):
            y = y + attention(q, k, v, self.heads, self.causal, self.upcast)
        init = nn.initializers.zeros_init() if self.zero_init else lecun_normal
        return Dense(width, self.dtype, self.out_bias, init, name="out")(y)


class AttentionBlock(nn.Module):
    """Self-attention of the H W pixels of [B, H, W, C], pre-normed and residual: `AttentionBlock` in CompVis
    `openaimodel.py`. The GroupNorm's eps is 1e-5."""

    heads: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        h = GroupNorm(self.groups, 1e-5, name="norm")(tokens)
        return (tokens + Attention(self.heads, True, self.dtype, zero_init=True, name="attention")(h)).reshape(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, GEGLU feed-forward (arXiv 2002.05202), each pre-normed and residual."""

    heads: int
    upcast: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, context: Context, first: Context | None = None) -> Array:
        """first: a context that the first attention attends to, in place of x itself. It is then called "text"."""
        attend = lambda name: Attention(self.heads, False, self.dtype, upcast=self.upcast, name=name)
        x = x + attend("self" if first is None else "text")(LayerNorm(name="norm1")(x), first)
        x = x + attend("cross")(LayerNorm(name="norm2")(x), context)
        channels = x.shape[-1]
        widen = Dense(8 * channels, self.dtype, name="ff_in").of(channels)
        narrow = Dense(channels, self.dtype, name="ff_out").of(4 * channels)

        def feed_forward(x: Array) -> Array:
            value, gate = jnp.split(widen(x), 2, axis=-1)
            return narrow(value * ACTIVATIONS["gelu"](gate))

        return x + some_at_a_time(feed_forward, LayerNorm(name="norm3")(x))


def block_name(i: int) -> str:
    """Returns the name of transformer block number i of a SpatialTransformer."""
    return f"block_{i}" if i else "block"


class SpatialTransformer(nn.Module):
    """Applies TransformerBlocks to the H W pixels of [B, H, W, C], taken as tokens. The GroupNorm's eps is 1e-6.

    The blocks are called block, block_1, block_2 and so on.
    """

    heads: int
    groups: int
    upcast: bool
    dtype: jnp.dtype
    depth: int = 1

    @nn.compact
    def __call__(self, x: Array, context: Context | list[tuple[Context, Context | None]]) -> Array:
        """context: one for all blocks, or a list with (context, first) for each, see TransformerBlock."""
        contexts = context if isinstance(context, list) else [(context, None)] * self.depth
        shape, x = x.shape, x.reshape(x.shape[0], -1, x.shape[-1])  # tokens: a TPU then keeps one layout throughout
        h = GroupNorm(self.groups, 1e-6, name="norm")(x)
        h = Dense(shape[-1], self.dtype, name="proj_in")(h)
        for i, given in enumerate(contexts):
            h = TransformerBlock(self.heads, self.upcast, self.dtype, name=block_name(i))(h, *given)
        zeros = nn.initializers.zeros_init()
        h = Dense(shape[-1], self.dtype, kernel_init=zeros, name="proj_out")(h)
        return (x + h).reshape(shape)
