"""What describes a family of models: a Family, as data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sdjax.families.config import Config
from sdjax.networks.part import Part

#: The fields of Config, and names in Family.parts, of the networks that make conditions.
CONDITIONS = ("text", "text_2", "class_table", "layout", "map", "image", "normalizer")


class Place(NamedTuple):
    """Where a network lies in a family's files."""

    part: Part
    folder: str  # its folder in a diffusers folder
    prefix: str  # the prefix of its tensors in a single file, without the dot
    label: str  # what messages call it


class Tower(NamedTuple):
    """A text tower, and where its states go."""

    part: str  # the tower's name in Family.parts
    into: str  # the field of Cond that its states become


class Mask(NamedTuple):
    """How an inpainting model takes a mask and the masked picture's latents beside x. 1 is what is painted."""

    hole: float = 0.0  # the masked picture's pixels in the hole
    kept: float = 0.0  # the mask's value where the picture stays
    first: bool = True  # does the mask stand before the masked latents?


class Family(NamedTuple):
    """The networks that the family's models have, and how to recognise its files. A new family is one file of data."""

    name: str
    parts: Mapping[str, Place]  # the name of a network in Config and in params -> its place in files
    towers: tuple[Tower, ...]
    process: str  # a name in diffusion.process.PROCESSES
    concat: str | None  # what stands beside x: None, "mask" (with the rest's latents), "map", "depth", "lowres"
    pipeline: str  # the pipeline class that model_index.json names; diffusers' own where it has one
    probes: Callable[[Config], dict[str, tuple[int, ...]]]  # tensor names and shapes that identify a single file
    watermark: Callable[[Config], bytes]  # what the official scripts for such a model write into its pictures
    presets: tuple[Config, ...]  # the published configurations
    others: tuple[Config, ...] = ()  # further configurations that a single file may have; they are no presets
    mask: Mask = Mask()  # where concat is "mask"
    vector: str | None = None  # what the time embedding takes: None, "level" of noise, "picture", "sizes"
    scale: float = 7.5  # the guidance scale of its models of text, unless a published one says another
    ema: bool = False  # do the official scripts sample with a single file's EMA copy?
    unused: Callable[[Config], dict[str, Any]] = lambda config: {}  # tensors that published single files hold besides

    def fits(self, config: Config) -> bool:
        """Is a model of this config one of this family?"""
        return self.takes_parts(config) and config.unet.in_channels == self.channels(config)

    def takes_parts(self, config: Config) -> bool:
        """Has a model of this config the networks and the vector of this family?"""
        kind = lambda part: self.parts[part].part.config if part in self.parts else type(None)
        same = all(type(getattr(config, part)) is kind(part) for part in CONDITIONS)
        unet = config.unet
        fits = {None: not unet.takes_vector, "level": unet.labels, "picture": unet.vector and not unet.added}
        fits["sizes"] = unet.vector and unet.added
        return same and bool(fits[self.vector])

    def channels(self, config: Config) -> int:
        """Returns how many channels the UNet takes in a model of this family."""
        latents = config.vae.latent_channels
        maps = config.map.channels if config.map else 0
        return latents + {None: 0, "mask": 1 + latents, "map": maps, "depth": 1, "lowres": 3}[self.concat]
