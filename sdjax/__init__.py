"""Stable Diffusion as pure functions in JAX.

    sd = sdjax.load("emoji")
    images = sdjax.txt2img(sd, "a 3d render of a red apple on a yellow background")

Names are imported when they are first used, so that `import sdjax` costs nothing.
"""

import importlib

from sdjax.errors import SdjaxError

_HOME = {
    "types": ("Cond",),
    "model.value": ("StableDiffusion",),
    "model.load": ("create", "load", "save"),
    "model.functions": ("predict", "vae_moments", "encode", "decode"),
    "conditioning.text": ("tokenize",),
    "conditioning.towers": ("encode_prompt",),
    "conditioning.classes": ("encode_classes",),
    "conditioning.depth": ("encode_depth",),
    "conditioning.layouts": ("encode_layout",),
    "conditioning.lowres": ("encode_lowres",),
    "conditioning.maps": ("encode_map",),
    "conditioning.masks": ("encode_mask",),
    "conditioning.pictures": ("encode_picture",),
    "weights.clip": ("load_clip", "save_clip"),
    "adapters.embedding": ("add_embedding",),
    "adapters.lora": ("add_lora",),
    "adapters.control": ("load_control",),
    "adapters.image_prompt": ("load_image_prompt",),
    "model.control": ("Control",),
    "model.image_prompt": ("ImagePrompt",),
    "tasks.attention_maps": ("attention_maps", "attention_pictures", "prompt_words"),
    "tasks.text_to_image": ("txt2img", "hires"),
    "tasks.image_to_image": ("img2img", "inpaint", "outpaint"),
    "tasks.upscale": ("upscale",),
    "tasks.stages": ("denoiser",),
    "tasks.program": ("save_program", "load_program"),
    "tasks.safety": ("load_safety_checker", "check_safety"),
    "diffusion.tables": ("samplers",),
    "devices.host": ("keep_programs",),
}
#: modules that are public as a whole: sdjax.sampling.plan, sdjax.pictures.contact_sheet, sdjax.watermark.embed
_MODULES = {
    "sampling": "sampling",
    "pictures": "pictures",
    "watermark": "image.watermark",
    "preprocess": "image.preprocess",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["SdjaxError", *_MODULE, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"sdjax.{_MODULES[name]}")
    if name not in _MODULE:
        raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sdjax.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
