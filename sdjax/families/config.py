"""The configuration of a whole model."""

from dataclasses import dataclass, field

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.vae.config import VAEConfig


@dataclass(frozen=True)
class Config:
    """A whole model. It is compiled for its parts and its schedule alone: two configs that differ in the fields of
    `compare=False` are equal, and share all programs."""

    name: str = field(default="sd15", compare=False)
    text: TextConfig = field(default_factory=TextConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    size: int = field(default=512, compare=False)  # the picture's side in pixels that it was trained at
    guidance_scale: float = field(default=7.5, compare=False)  # as published; what guidance_scale=None means
    pipeline: str | None = field(default=None, compare=False)  # diffusers' class that its folder named

    @property
    def multiple(self) -> int:
        """A picture's sides are multiples of so many pixels."""
        return self.vae.factor * self.unet.factor
