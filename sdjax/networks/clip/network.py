"""CLIP's two towers (arXiv 2103.00020): pre-LN transformers, LayerNorm eps 1e-5."""

import flax.linen as nn
import jax.numpy as jnp

from sdjax.networks.clip.config import NormalizerConfig, TextConfig, VisionConfig
from sdjax.nn.layers import ACTIVATIONS, Dense, LayerNorm, parameter
from sdjax.nn.transformer import Attention
from sdjax.types import Array


class Layer(nn.Module):
    """One transformer layer: attention and a two-layer MLP, each pre-normed and residual."""

    config: TextConfig | VisionConfig
    causal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        x = x + Attention(config.heads, True, self.dtype, causal=self.causal, name="attn")(LayerNorm(name="norm1")(x))
        h = Dense(config.mlp_width, self.dtype, name="fc1")(LayerNorm(name="norm2")(x))
        return x + Dense(config.width, self.dtype, name="fc2")(ACTIVATIONS[config.activation](h))


class TextTower(nn.Module):
    """CLIP's text tower: token ids -> the states of all positions after the final LayerNorm."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, vectors: Array | None = None) -> Array:
        """ids int32 [B, L] -> float32 states [B, L, width], see config.back; with config.projection (states, pooled).

        pooled: float32 [B, projection], of the last layer's state after the final LayerNorm, at the first end token.
        vectors: [N, width], the embeddings of textual inversion (arXiv 2208.01618). Ids from vocab_size on stand for
            its rows.

        Attention is causal and does not mask padding: padded positions have states like all others.
        """
        config = self.config
        embed = nn.Embed(config.vocab_size, config.width, dtype=self.dtype, name="token_embedding")
        x = embed(ids if vectors is None else jnp.minimum(ids, config.vocab_size - 1))
        if vectors is not None:
            own = vectors.astype(self.dtype)[jnp.maximum(ids - config.vocab_size, 0)]
            x = jnp.where(ids[..., None] < config.vocab_size, x, own)
        position = parameter(self, "position_embedding", nn.initializers.normal(0.01), (config.length, config.width))
        x = x + position[: ids.shape[1]].astype(self.dtype)
        early = x
        for i in range(config.layers):
            early = x if i == config.layers - config.back else early
            x = Layer(config, True, self.dtype, name=f"layer_{i}")(x)
        last = LayerNorm(name="final_norm")(x).astype(jnp.float32)
        states = early.astype(jnp.float32) if config.back else last
        if config.projection is None:
            return states
        project = Dense(config.projection, self.dtype, use_bias=False, name="projection")
        return states, project(pool_text(last, ids, config.eos_token)).astype(jnp.float32)


def pool_text(states: Array, ids: Array, eos_token: int) -> Array:
    """Returns the state at each row's first end token: states [B, L, D], ids [B, L] -> [B, D]."""
    first = jnp.argmax(ids == eos_token, axis=1)
    return jnp.take_along_axis(states, first[:, None, None], axis=1)[:, 0]


class ImageTower(nn.Module):
    """CLIP's image tower: pictures -> their embeddings in the space that they share with texts."""

    config: VisionConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array, back: int = 0) -> Array:
        """pixels [B, size, size, 3] -> float32 embedding [B, projection], not normalised.

        back: n > 0 returns the states before the n last layers instead, float32 [B, 1 + patches, width], which no norm
            follows.
        """
        config = self.config
        patch = (config.patch, config.patch)
        x = nn.Conv(config.width, patch, patch, "VALID", use_bias=False, dtype=self.dtype, name="patch")(
            pixels.astype(self.dtype)
        )
        x = x.reshape(x.shape[0], -1, config.width)
        normal = nn.initializers.normal(0.02)
        token = parameter(self, "class_embedding", normal, (config.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, config.width)), x], axis=1)
        x = x + parameter(self, "position_embedding", normal, x.shape[1:]).astype(self.dtype)
        x = LayerNorm(name="pre_norm")(x)
        for i in range(config.layers - back):
            x = Layer(config, False, self.dtype, name=f"layer_{i}")(x)
        if back:
            return x.astype(jnp.float32)
        pooled = LayerNorm(name="post_norm")(x[:, 0])
        projection = Dense(config.projection, self.dtype, use_bias=False, name="projection")
        return projection(pooled).astype(jnp.float32)


class Normalizer(nn.Module):
    """Statistics of embeddings; `apply` normalises by them."""

    config: NormalizerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embeddings: Array) -> Array:
        """[B, width] -> float32 [B, width], of mean 0 and standard deviation 1."""
        mean = self.param("mean", nn.initializers.zeros_init(), (1, self.config.width))
        std = self.param("std", nn.initializers.ones_init(), (1, self.config.width))
        return (embeddings - mean) / std
