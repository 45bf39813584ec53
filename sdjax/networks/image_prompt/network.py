"""The IP-Adapter (arXiv 2308.06721), after tencent-ailab's ip_adapter.py and resampler.py.

A cross-attention with the queries q of the picture that is drawn becomes, before its last layer,

    y = attention(q, k, v) + scale attention(q, k_ip, v_ip)

where k_ip and v_ip are made of the tokens of the picture that is the prompt. The scale is multiplied into v_ip.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sdjax.networks.image_prompt.config import HEAD, ImagePromptConfig
from sdjax.nn.layers import ACTIVATIONS, Dense, LayerNorm, dense, parameter
from sdjax.nn.transformer import Attention
from sdjax.types import Array, Params


class Block(nn.Module):
    """A block of plus: queries attend to the patches and to themselves, then a feed-forward, each residual."""

    config: ImagePromptConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, queries: Array) -> Array:
        """x: patches [B, T, width]. queries: [B, N, width], which it returns changed."""
        config, dtype = self.config, self.dtype
        x, h = LayerNorm(name="norm1")(x), LayerNorm(name="norm2")(queries)
        shape = {"inner": config.heads * HEAD, "out_bias": False}
        attend = Attention(config.heads, False, dtype, **shape, name="attention")
        queries = queries + attend(h, jnp.concatenate([x, h], axis=1))
        h = Dense(config.mlp_width, dtype, use_bias=False, name="ff_in")(LayerNorm(name="norm3")(queries))
        return queries + Dense(config.width, dtype, use_bias=False, name="ff_out")(ACTIVATIONS["gelu"](h))


class PictureTokens(nn.Module):
    """Makes tokens of what the image tower sees of a picture."""

    config: ImagePromptConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, seen: Array) -> Array:
        """seen: embeddings [B, seen], or of plus states [B, T, seen]. Returns [B, tokens, context_dim]."""
        config, dtype = self.config, self.dtype
        if not config.plus:
            h = Dense(config.tokens * config.context_dim, dtype, name="proj")(seen)
            return LayerNorm(name="norm")(h.reshape(len(seen), config.tokens, config.context_dim))
        shape = (1, config.tokens, config.width)
        queries = parameter(self, "latents", nn.initializers.normal(config.width**-0.5), shape).astype(dtype)
        queries = jnp.broadcast_to(queries, (len(seen), *shape[1:]))
        x = Dense(config.width, dtype, name="proj_in")(seen)
        for i in range(config.blocks):
            queries = Block(config, dtype, name=f"block_{i}")(x, queries)
        return LayerNorm(name="norm_out")(Dense(config.context_dim, dtype, name="proj_out")(queries))


class Layer(nn.Module):
    """The keys and values of one cross-attention."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        project = lambda name: Dense(self.width, self.dtype, use_bias=False, name=name)(tokens)
        return project("k"), project("v")


class ImagePromptNet(nn.Module):
    """The whole IP-Adapter. It computes in `dtype`."""

    config: ImagePromptConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, seen: Array) -> list[tuple[Array, Array]]:
        """Returns the keys and values of each cross-attention; see `PictureTokens`."""
        tokens = PictureTokens(self.config, self.dtype, name="tokens")(seen)
        return [Layer(width, self.dtype, name=f"layer_{i}")(tokens) for i, width in enumerate(self.config.layers)]


def tokens_of(params: Params, seen: Array, config: ImagePromptConfig, dtype: Any) -> Array:
    """Returns the tokens of pictures, float32 [B, tokens, context_dim], as `PictureTokens` makes them.

    params: the IP-Adapter's.
    """
    return PictureTokens(config, dtype).apply({"params": params["tokens"]}, seen).astype(jnp.float32)


def keys_of_tokens(params: Params, tokens: Array, scale: Array, count: int, dtype: Any) -> list[tuple[Array, Array]]:
    """Returns the keys and the scaled values of tokens [B, N, context_dim], for each of `count` cross-attentions.

    params: the IP-Adapter's. scale: [].
    """
    layers = [params[f"layer_{i}"] for i in range(count)]
    scaled = lambda value: (value.astype(jnp.float32) * scale).astype(dtype)
    return [(dense(own["k"], tokens, dtype), scaled(dense(own["v"], tokens, dtype))) for own in layers]
