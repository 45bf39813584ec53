"""The configuration of the UNet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """The denoising UNet: ResBlocks with time embedding, spatial transformers with cross-attention."""

    in_channels: int = 4  # 9 for inpainting: latent, mask, masked image's latent
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2  # ResBlocks a level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # a transformer after each ResBlock of the level?
    heads: tuple[int, ...] = (8, 8, 8, 8)  # heads a level; the middle block uses the last level's
    context_dim: int = 768
    groups: int = 32
    linear_projection: bool = False  # files hold proj_in / proj_out as Linear (v2) or 1x1 conv (v1)
    upcast_attention: bool = False  # q k^T in float32 whatever the dtype (v2.1 overflows float16)

    @property
    def factor(self) -> int:
        """Latent sides must be multiples of this."""
        return 2 ** (len(self.channels) - 1)
