"""Stable Diffusion as pure functions in JAX.

    sd = sdjax.load("emoji")
    images = sdjax.txt2img(sd, "a 3d render of a red apple on a yellow background")

Names are imported at their first use, so that `import sdjax` costs nothing.
"""

import importlib

from sdjax.errors import SdjaxError

_HOME = {
    "model": ("StableDiffusion", "create", "load", "save", "tokenize", "encode_prompt", "predict", "vae_moments",
              "encode", "decode"),
    "weights.clip": ("load_clip", "save_clip"),
    "embedding": ("add_embedding",),
    "maps": ("attention_maps", "attention_pictures", "prompt_words"),
    "generate": ("txt2img", "img2img", "inpaint", "outpaint", "hires"),
    "stages": ("denoiser",),
    "program": ("save_program", "load_program"),
    "safety": ("load_safety_checker", "check_safety"),
    "sampler": ("samplers",),
}
_MODULES = ("watermark",)  # public as they are: sdjax.watermark.embed
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["SdjaxError", *_MODULE, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"sdjax.{name}")
    if name not in _MODULE:
        raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sdjax.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
