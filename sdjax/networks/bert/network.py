"""The transformer of tokens: pre-normed, without a mask, LayerNorm eps 1e-5 (CompVis `x_transformer.py`)."""

import flax.linen as nn
import jax.numpy as jnp

from sdjax.networks.bert.config import BertConfig
from sdjax.nn.layers import ACTIVATIONS, Dense, LayerNorm, parameter
from sdjax.nn.transformer import Attention
from sdjax.types import Array


class BertLayer(nn.Module):
    """Attention without biases on q, k, v, and an MLP with the exact gelu, each pre-normed and residual."""

    config: BertConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, width = self.config, x.shape[-1]
        inner = config.heads * config.head_width
        attend = Attention(config.heads, False, self.dtype, inner=inner, name="attn")
        x = x + attend(LayerNorm(name="norm1")(x))
        h = Dense(4 * width, self.dtype, name="fc1")(LayerNorm(name="norm2")(x))
        return x + Dense(width, self.dtype, name="fc2")(ACTIVATIONS["gelu"](h))


class Bert(nn.Module):
    """Tokens -> the states of all positions after the final LayerNorm."""

    config: BertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        """ids int32 [B, L] -> float32 states [B, L, width].

        Padding is not masked. "logits", the head of a language model, is in the files, and nothing uses it.
        """
        config, normal = self.config, nn.initializers.normal(0.02)
        x = nn.Embed(config.vocab_size, config.width, dtype=self.dtype, embedding_init=normal, name="token_embedding")(
            ids
        )
        position = parameter(self, "position_embedding", normal, (config.length, config.width))
        x = x + position[: ids.shape[1]].astype(self.dtype)
        for i in range(config.layers):
            x = BertLayer(config, self.dtype, name=f"layer_{i}")(x)
        x = LayerNorm(name="final_norm")(x)
        if self.is_initializing():
            Dense(config.vocab_size, self.dtype, name="logits")(x)
        return x.astype(jnp.float32)
