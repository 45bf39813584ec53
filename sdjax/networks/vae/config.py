"""The configuration of the VAE."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKL (arXiv 2112.10752). A latent pixel is f x f pixels, f = 2 ** (len(channels) - 1)."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # ResBlocks per level in the encoder; the decoder has one more
    latent_channels: int = 4
    groups: int = 32
    scaling: float = 0.18215  # latents = scaling * posterior sample

    @property
    def factor(self) -> int:
        """f: the pixels along one side of a latent pixel."""
        return 2 ** (len(self.channels) - 1)
