"""The configuration of the UNet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """The denoising UNet: ResBlocks with time embedding, spatial transformers with cross-attention."""

    in_channels: int = 4  # 9 for inpainting: latents, mask, the masked picture's latents
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2  # ResBlocks per level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # per level: a transformer after each ResBlock?
    heads: tuple[int, ...] = (8, 8, 8, 8)  # attention heads per level; the middle block uses the last level's
    context_dim: int = 768
    groups: int = 32
    linear_projection: bool = False  # True: files hold proj_in / proj_out as Linear (v2); False: as 1x1 conv (v1)
    upcast_attention: bool = False  # q k^T from float32 inputs, whatever the dtype is (v2.1 overflows float16)

    @property
    def factor(self) -> int:
        """The number that the sides of the latents must be multiples of."""
        return 2 ** (len(self.channels) - 1)
