"""Models that were distilled for few steps. Of most no tensor says so, the names of their files do."""

import re
from dataclasses import replace
from pathlib import Path

from sdjax.errors import log
from sdjax.families.config import Config

LCM_STEPS, LCM_SCALE = 8, 8.5  # of UNets that take the guidance scale: lcm-sdxl's card, diffusers' default


def named_distilled(config: Config, source: str | Path) -> Config:
    """Returns a model's config with what a published name in `source`, a file's or a folder's, says; it is logged.

    The names are sd-turbo and sdxl-turbo (1 to 4 steps), and ByteDance's sdxl_lightning_4step and its like (their own
    number of steps; that of 1 step predicts x0). All walk trailing timesteps and are guided by 1. LCM's UNets take the
    guidance scale, and need no name.
    """
    if config.unet.guidance:
        return replace(config, few_steps=LCM_STEPS, guidance_scale=LCM_SCALE)
    name = re.sub(r"[^a-z0-9]+", "", str(Path(source).name).lower())
    turbo, lightning = re.search(r"sd(xl)?turbo", name), re.search(r"sdxllightning(\d+)?", name)
    if config.few_steps is not None or not (turbo or lightning):
        return config
    most = 4 if turbo else int(lightning[1] or 8)
    log.warning(
        "%s: by its name it is distilled for %s: guidance_scale is 1 and spacing trailing, if you give no others",
        source,
        "1 step" if most == 1 else f"{'1 to ' if turbo else ''}{most} steps",
    )
    if lightning and most == 1:
        config = replace(config, schedule=replace(config.schedule, prediction="x0"))
    return replace(config, few_steps=most, guidance_scale=1.0, spacing="trailing")
