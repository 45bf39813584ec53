"""The table of all families, the presets by name, and the family of a config."""

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.family import Family
from sdjax.families.ldm import CIN256_V2, LDM, LDM_CLASSES, LDM_INPAINT, LDM_LAYOUT, LDM_LOWRES, LDM_MAP, LDM_TEXT
from sdjax.families.sd import EMOJI, SD, SD15, SD15_INPAINT, SD21, SD21_BASE, SD_INPAINT, SD_MAP, SD_TURBO
from sdjax.families.sd2 import SD_DEPTH, SD_UNCLIP, SD_UNCLIP_PRIOR, SD_UPSCALE, SD_VARIATIONS
from sdjax.families.sdxl import (
    SD_XL,
    SD_XL_INPAINT,
    SD_XL_REFINER,
    SDXL,
    SDXL_INPAINT,
    SDXL_REFINER,
    SDXL_TURBO,
)

FAMILIES: tuple[Family, ...] = (
    *(SD, SD_INPAINT, SD_MAP, SD_DEPTH, SD_UPSCALE, SD_UNCLIP, SD_UNCLIP_PRIOR, SD_VARIATIONS),
    *(SD_XL, SD_XL_INPAINT, SD_XL_REFINER),
    *(LDM, LDM_CLASSES, LDM_LAYOUT, LDM_MAP, LDM_INPAINT, LDM_LOWRES, LDM_TEXT),
)

#: The published configurations by their names ("sd15"), and by the names that --model of the training scripts takes
#: (SD15, SD21 ...).
PRESETS = {
    config.name: config
    for config in (
        *(SD15, SD15_INPAINT, SD21_BASE, SD21, EMOJI),
        *(SDXL, SDXL_REFINER, SDXL_INPAINT, SDXL_TURBO, SD_TURBO),
    )
}
NAMED = {name.upper().replace("-", "_"): config for name, config in PRESETS.items()}


#: All published configurations, also those that are no presets to train from nothing.
PUBLISHED = (*PRESETS.values(), *(config for family in FAMILIES for config in family.others))


def family_of(config: Config) -> Family:
    """Returns the family of a model, by the number of channels that its UNet takes. SdjaxError: no family has it."""
    for family in FAMILIES:
        if family.fits(config):
            return family
    like = [family for family in FAMILIES if family.takes_parts(config)] or FAMILIES
    known = " or ".join(str(channels) for channels in sorted({family.channels(config) for family in like}))
    raise SdjaxError(f"sd {config.name}: its UNet takes {config.unet.in_channels} channels, {known} expected")


def own_scale(config: Config) -> float:
    """Returns the guidance scale of a model that is none of PUBLISHED: of a published one with the same text tower and
    UNet, else its family's; without text that of cin256-v2, or 1 without a null."""
    like = [known for known in PUBLISHED if (known.text, known.unet) == (config.text, config.unet)]
    if config.text is None:
        return CIN256_V2.guidance_scale if config.null else 1.0
    return like[0].guidance_scale if like else family_of(config).scale


def prompt_of(config: Config) -> str:
    """Returns what a model takes as its prompt, in words for messages."""
    if config.text is not None:
        return "text, or a Cond, as sdjax.encode_prompt returns it"
    for part, builder in (("class_table", "classes"), ("layout", "layout"), ("image", "picture")):
        if getattr(config, part) is not None:
            return f"a Cond, as sdjax.encode_{builder} returns it"
    if concat := family_of(config).concat:
        return f"a Cond, as sdjax.encode_{concat} returns it"
    return "None: it is conditioned on nothing"


def needs_nothing_beside(config: Config, task: str | None = None) -> None:
    """SdjaxError: the model's UNet takes channels beside x, or a number of channels that no family has.

    task: the name of a task that does not take a Cond with these channels either; None: it takes one.
    """
    concat, channels = family_of(config).concat, config.unet.in_channels
    if concat == "mask":
        raise SdjaxError(f"sd {config.name}: an inpainting model ({channels} channels), use inpaint")
    if concat is not None:
        what = {"map": "a map", "depth": "a depth map", "lowres": "a small picture"}[concat]
        if task is not None:
            raise SdjaxError(f"sd {config.name}: takes {what} beside x, {task} does not, use txt2img or img2img")
        raise SdjaxError(f"sd {config.name}: takes {what}, give a Cond, as sdjax.encode_{concat} returns it")
