"""What a family of models is, as data."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sdjax.families.config import Config
from sdjax.networks.part import Part


class Place(NamedTuple):
    """Where a network stands in a family's files."""

    part: Part
    folder: str  # in a diffusers folder
    prefix: str  # of its tensors in a single file, without the dot


class Tower(NamedTuple):
    """What a text tower's states become."""

    part: str  # its name in Family.parts
    into: str  # the field of Cond


class Family(NamedTuple):
    """The networks that its models have, and how its files are told from others. A new family is a file of data."""

    name: str
    parts: Mapping[str, Place]  # the name of a part in Config and in params -> its place
    towers: tuple[Tower, ...]
    process: str  # a name in diffusion.process.PROCESSES
    concat: str | None  # what stands beside x: None, or "mask" (a mask and the masked picture's latents)
    pipeline: str  # diffusers' class
    probes: Callable[[Config], dict[str, tuple[int, ...]]]  # names and shapes by which a single file is told
    watermark: Callable[[Config], bytes]  # what the official scripts of such a model write into its pictures
    presets: tuple[Config, ...]  # published configurations
    others: tuple[Config, ...] = ()  # configurations that a single file may have and that have no name of their own

    def channels(self, config: Config) -> int:
        """How many channels the UNet of such a model takes."""
        latents = config.vae.latent_channels
        return latents + {None: 0, "mask": 1 + latents}[self.concat]
