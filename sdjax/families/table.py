"""All families, and the family of a config."""

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.family import Family
from sdjax.families.sd import EMOJI, SD, SD15, SD15_INPAINT, SD21, SD21_BASE, SD_INPAINT

FAMILIES: tuple[Family, ...] = (SD, SD_INPAINT)

#: The published configurations by their names, and by the names that training scripts' --model takes: SD15, SD21 ...
PRESETS = {config.name: config for config in (SD15, SD15_INPAINT, SD21_BASE, SD21, EMOJI)}
NAMED = {name.upper().replace("-", "_"): config for name, config in PRESETS.items()}


def family_of(config: Config) -> Family:
    """The family of a model. SdjaxError: its UNet takes a number of channels that no family knows."""
    for family in FAMILIES:
        if config.unet.in_channels == family.channels(config):
            return family
    known = " or ".join(str(channels) for channels in sorted({family.channels(config) for family in FAMILIES}))
    raise SdjaxError(f"sd {config.name}: its UNet takes {config.unet.in_channels} channels, {known} expected")


def refuse_inpainting(config: Config) -> None:
    """SdjaxError for a model whose UNet takes more than latents: an inpainting model, or one that no task takes."""
    if family_of(config).concat is not None:
        raise SdjaxError(f"sd {config.name}: an inpainting model ({config.unet.in_channels} channels), use inpaint")
