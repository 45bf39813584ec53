"""The configuration of the VAE."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp


@dataclass(frozen=True)
class VAEConfig:
    """An autoencoder of latent diffusion (arXiv 2112.10752): with a Gaussian posterior (KL), or with a codebook (VQ).

    A latent pixel is f x f pixels, f = 2 ** (len(channels) - 1).
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # ResBlocks per level in the encoder; the decoder has one more
    latent_channels: int = 4
    groups: int = 32
    scaling: float = 0.18215  # latents = scaling * posterior sample
    attention: tuple[bool, ...] = ()  # per level: attention after each ResBlock? empty: none
    middle_attention: bool = True
    codes: int | None = None  # vectors in the codebook; `encode` does not quantise, `decode` does
    upcast: bool = False  # computed in float32 where float16 is asked for, which it overflows (force_upcast)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Is there attention after each ResBlock of a level? Per level."""
        return self.attention or (False,) * len(self.channels)

    def computed_in(self, dtype: Any) -> Any:
        """Returns the dtype that a computation asked for in `dtype` is done in."""
        return jnp.dtype("float32") if self.upcast and jnp.dtype(dtype) == jnp.float16 else dtype

    @property
    def factor(self) -> int:
        """f: the pixels along one side of a latent pixel."""
        return 2 ** (len(self.channels) - 1)
