"""The configuration of a T2I-Adapter."""

from dataclasses import dataclass

KINDS = ("full_adapter", "light_adapter", "full_adapter_xl")  # diffusers' names


@dataclass(frozen=True)
class AdapterConfig:
    """A T2I-Adapter: features of a picture for each level of a UNet."""

    kind: str = "full_adapter"
    picture_channels: int = 3  # 1 for sketches
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each feature
    blocks: int = 2  # ResBlocks a feature
    unshuffle: int = 8  # pixels along a side of the squares that become channels: 16 for SDXL

    @property
    def light(self) -> bool:
        return self.kind == "light_adapter"

    @property
    def large(self) -> bool:
        """Is it one for SDXL, which skips the UNet's first resolution and has a feature for its middle?"""
        return self.kind == "full_adapter_xl"

    @property
    def factor(self) -> int:
        """How many pixels along a side become one latent."""
        return self.unshuffle // 2 if self.large else self.unshuffle

    @property
    def residuals(self) -> int:
        return len(self.channels)

    def halves(self, level: int) -> bool:
        """Does this feature have half the sides of the one before it?"""
        return level == 2 if self.large else level > 0

    def before(self, level: int) -> int:
        """Channels of what this feature's blocks get."""
        if self.light:
            return self.channels[level - 1] if level else self.picture_channels * self.unshuffle**2
        return self.channels[max(level - 1, 0)]
