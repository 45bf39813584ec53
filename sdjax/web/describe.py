"""The `parameters` text of a picture that the server drew, which `generate --from` reads."""

from typing import Any

from sdjax.conditioning.sizes import takes_sizes
from sdjax.errors import SdjaxError
from sdjax.model.value import StableDiffusion
from sdjax.tasks.networks import cut_networks, hashes_text
from sdjax.tasks.options import OPTIONS
from sdjax.tasks.parameters import describe
from sdjax.web.ask import Ask
from sdjax.web.models import Models

#: Options with a text that say nothing here: a folder of the server's is no stranger's business.
UNSAID = ("lora_folder", "num_images")


def text_of(models: Models, title: str, sd: StableDiffusion, ask: Ask) -> str:
    """Returns the text of one picture. Its size is that of the first walk, as `sdjax generate` writes it."""
    options, found = ask.options, {"prompt": ask.prompt, "dtype": sd.dtype.name}
    size = options.width, options.height
    found["negative_prompt"] = options.negative_prompt
    for option in OPTIONS:
        if option.text is not None and option.name not in UNSAID:
            found[option.name] = getattr(options, option.name)
    if found["guidance_scale"] is None:
        found["guidance_scale"] = sd.config.guidance_scale
    if not options.variation_strength:  # the seed of no variation
        found["variation_seed"] = 0
    if takes_sizes(sd.config):
        found |= {"clip_skip": 1, "sdxl_clip_skip": options.clip_skip}
    if ask.hires is not None:
        found |= {"hires": ask.hires.scale, "hires_upscale": ask.hires.upscale, "hires_steps": ask.hires.steps}
        found["strength"] = ask.hires.strength
    elif ask.strength is not None:
        found["strength"] = ask.strength
    more = {"Mask blur": f"{ask.feather:g}"} if ask.feather else {}
    hashes = {"Lora hashes": hashes_of(ask)}
    return describe(
        found, options.seed, size, sd.config.name, None, models.hash_of(title), **more, **ask.texts, **hashes
    )


def hashes_of(ask: Ask) -> str | None:
    """Returns the hashes of the LoRAs that a prompt names, as the web UI writes them, or None."""
    try:
        _, (networks,) = cut_networks([ask.prompt], ask.options)
    except SdjaxError:  # it was taken away meanwhile
        return None
    return hashes_text([(one.name, one.path) for one in networks])


def all_seeds(asks: list[Ask]) -> dict[str, list[Any]]:
    """Returns what the web UI's `info` lists of each picture."""
    return {
        "all_prompts": [ask.prompt for ask in asks],
        "all_negative_prompts": [ask.options.negative_prompt for ask in asks],
        "all_seeds": [ask.options.seed for ask in asks],
        "all_subseeds": [ask.options.variation_seed for ask in asks],
    }
