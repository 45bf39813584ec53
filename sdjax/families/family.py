"""What describes a family of models: a Family, as data."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sdjax.families.config import Config
from sdjax.networks.part import Part


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


class Family(NamedTuple):
    """The networks that the family's models have, and how to recognise its files. A new family is one file of data."""

    name: str
    parts: Mapping[str, Place]  # the name of a network in Config and in params -> its place in files
    towers: tuple[Tower, ...]
    process: str  # a name in diffusion.process.PROCESSES
    concat: str | None  # what is concatenated to x: None, or "mask" (a mask and the masked picture's latents)
    pipeline: str  # diffusers' pipeline class
    probes: Callable[[Config], dict[str, tuple[int, ...]]]  # tensor names and shapes that identify a single file
    watermark: Callable[[Config], bytes]  # what the official scripts for such a model write into its pictures
    presets: tuple[Config, ...]  # the published configurations
    others: tuple[Config, ...] = ()  # further configurations that a single file may have; they are no presets

    def fits(self, config: Config) -> bool:
        """Is a model of this config one of this family?"""
        same = ("text" in self.parts, "classes" in self.parts) == (config.text is not None, config.classes is not None)
        return same and config.unet.in_channels == self.channels(config)

    def channels(self, config: Config) -> int:
        """Returns how many channels the UNet takes in a model of this family."""
        latents = config.vae.latent_channels
        return latents + {None: 0, "mask": 1 + latents}[self.concat]
