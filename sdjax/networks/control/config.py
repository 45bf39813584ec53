"""The configuration of a ControlNet."""

from dataclasses import dataclass, field

from sdjax.networks.unet.config import UNetConfig


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet: a copy of a UNet's way down and middle, and what makes their input of a picture."""

    unet: UNetConfig = field(default_factory=UNetConfig)  # the UNet that it copies; its way up does not matter
    hint: tuple[int, ...] = (
        16,
        32,
        96,
        256,
    )  # channels of the picture's embedding; each but the first halves its sides
    picture_channels: int = 3
    bgr: bool = False  # the picture's channels are blue, green, red
    pooled: bool = False  # residuals are means over all pixels, of the conditional side alone (shuffle)

    @property
    def factor(self) -> int:
        """How many pixels along a side become one latent."""
        return 2 ** (len(self.hint) - 1)

    @property
    def residuals(self) -> int:
        """How many residuals it makes: one for each skip of the UNet, then the middle's."""
        return len(self.unet.skip_channels) + 1
