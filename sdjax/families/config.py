"""The configuration of a whole model."""

from dataclasses import dataclass, field

from sdjax.checks import is_whole
from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.errors import SdjaxError
from sdjax.networks.bert.config import BertTextConfig, LayoutConfig
from sdjax.networks.clip.config import NormalizerConfig, TextConfig, VisionConfig
from sdjax.networks.labels.network import ClassConfig
from sdjax.networks.maps.network import MapConfig
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.vae.config import VAEConfig


@dataclass(frozen=True)
class Config:
    """The configuration of a whole model.

    Programs are compiled for its networks and its schedule alone. Two configs that differ only in fields with
    `compare=False` are equal and share all compiled programs.
    """

    name: str = field(default="sd15", compare=False)
    text: TextConfig | BertTextConfig | None = field(default_factory=TextConfig)  # None: the model takes no text
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    text_2: TextConfig | None = None  # SDXL's second text tower
    class_table: ClassConfig | None = None  # of a model of classes
    layout: LayoutConfig | None = None  # the encoder of a model of layouts
    map: MapConfig | None = None  # the rescaler of a model of semantic maps
    image: VisionConfig | None = None  # the image tower of a model of pictures
    normalizer: NormalizerConfig | None = None  # of unCLIP's embeddings of pictures
    size: int = field(default=512, compare=False)  # side in pixels of the pictures that it was trained on
    guidance_scale: float = field(default=7.5, compare=False)  # the published one; guidance_scale=None means this
    zero_negative: bool = field(default=False, compare=False)  # does an empty negative prompt mean zeros?
    few_steps: int | None = field(default=None, compare=False)  # the most steps that a distilled model is made for
    pipeline: str | None = field(default=None, compare=False)  # the diffusers class that its folder names
    spacing: str | None = field(default=None, compare=False)  # of timesteps, as its folder asks; None: the sampler's

    @property
    def classes(self) -> int | None:
        """The number of classes of a model of classes, the null class included."""
        return self.class_table and self.class_table.classes

    @property
    def null(self) -> bool:
        """Has the model an unconditional half: the empty prompt, the null class, the empty layout, a token of zeros?"""
        has_null = [part.null for part in (self.class_table, self.layout) if part is not None]
        return self.text is not None or self.image is not None or any(has_null)

    @property
    def multiple(self) -> int:
        """The number of pixels that a picture's sides are rounded down to multiples of, where no size is asked for."""
        return self.vae.factor * self.unet.factor

    @property
    def unit(self) -> int:
        """The number of pixels that a size which is asked for must be a multiple of."""
        return self.vae.factor * self.unet.unit

    def check_side(self, name: str, side: int | None) -> None:
        """SdjaxError: `side`, an argument of this name, is a size in pixels that the model does not take."""
        if side is not None and (not is_whole(side, self.unit) or side % self.unit):
            raise SdjaxError(f"{name} {side!r}: a positive multiple of {self.unit} pixels for {self.name}")
