"""The class table: `ClassEmbedder` in CompVis `encoders/modules.py`."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from sdjax.types import Array


@dataclass(frozen=True)
class ClassConfig:
    """A table of classes."""

    classes: int = 1001  # rows of the table, the null class included
    width: int = 512
    null: bool = True  # the last row is the null class, which training puts in place of dropped ones


class ClassTable(nn.Module):
    """Rows of the table, as contexts of one token."""

    config: ClassConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        """ids int32 [B] -> float32 [B, 1, width]."""
        init = nn.initializers.normal(1.0)  # torch's Embedding
        table = self.param("embedding", init, (self.config.classes, self.config.width))
        return table.astype(jnp.float32)[ids][:, None]
