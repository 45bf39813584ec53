"""The table of all families, the presets by name, and the family of a config."""

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.family import Family
from sdjax.families.ldm import LDM_CLASSES
from sdjax.families.sd import EMOJI, SD, SD15, SD15_INPAINT, SD21, SD21_BASE, SD_INPAINT

FAMILIES: tuple[Family, ...] = (SD, SD_INPAINT, LDM_CLASSES)

#: The published configurations by their names ("sd15"), and by the names that --model of the training scripts takes
#: (SD15, SD21 ...).
PRESETS = {config.name: config for config in (SD15, SD15_INPAINT, SD21_BASE, SD21, EMOJI)}
NAMED = {name.upper().replace("-", "_"): config for name, config in PRESETS.items()}


def family_of(config: Config) -> Family:
    """Returns the family of a model, by the number of channels that its UNet takes. SdjaxError: no family has it."""
    for family in FAMILIES:
        if family.fits(config):
            return family
    known = " or ".join(str(channels) for channels in sorted({family.channels(config) for family in FAMILIES}))
    raise SdjaxError(f"sd {config.name}: its UNet takes {config.unet.in_channels} channels, {known} expected")


def refuse_inpainting(config: Config) -> None:
    """SdjaxError: the model is an inpainting model, or its UNet takes a number of channels that no family has."""
    if family_of(config).concat is not None:
        raise SdjaxError(f"sd {config.name}: an inpainting model ({config.unet.in_channels} channels), use inpaint")
