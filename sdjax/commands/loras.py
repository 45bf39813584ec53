"""The LoRAs of a command line: FILE, FILE:0.8 or FILE:0.8:0.5, and what a picture's text says of them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.errors import SdjaxError


def read_weighted(text: str) -> tuple[str, float, float | None]:
    """ "style.safetensors:0.8:0.5" -> (the file, the UNet's weight, the text towers'; None: the same).

    Only last parts that are numbers are weights: others belong to the name. SdjaxError: there is no name.
    """
    parts, weights = text.split(":"), []
    while len(parts) > 1 and len(weights) < 2:
        with contextlib.suppress(ValueError):
            weights.insert(0, float(parts[-1]))
            parts.pop()
            continue
        break
    name = ":".join(parts)
    if not name.strip():
        raise SdjaxError(f"lora {text!r}: FILE, FILE:WEIGHT or FILE:WEIGHT:TEXT_WEIGHT expected")
    return name, *(weights + [1.0, None][len(weights) :])[:2]


def add_loras(sd, texts: Sequence[str]):
    """Returns a model with the LoRAs of --lora merged."""
    import sdjax

    for text in texts:
        name, weight, text_weight = read_weighted(text)
        sd = sdjax.add_lora(sd, name, weight, text_weight)
    return sd


def files_of_loras(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Returns the names of --lora's LoRAs and their files. SdjaxError: one is not there."""
    from sdjax.adapters.lora_files import find_files

    names = [read_weighted(text)[0] for text in texts]
    return [(Path(name).stem, find_files(name)[0].path) for name in names]


def settings_of_loras(options: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """Returns what a batch run's settings say of the LoRAs of its prompts: their hashes, wherever the files lie."""
    found = dict.fromkeys(hashes((), one, options.lora_folder, options.syntax) for one in dict.fromkeys(prompts))
    return {"loras": [one for one in found if one]} if any(found) else {}


def hashes(files: Sequence[tuple[str, Path]], prompt: str, folder: str | None, syntax: str) -> str | None:
    """Returns the LoRAs that --lora and a prompt name with their hashes, as the web UI writes them, or None for none.

    files: of `files_of_loras`. SdjaxError: one of the prompt's is not there.
    """
    from sdjax.tasks.networks import cut_networks, hashes_text
    from sdjax.tasks.options import TaskOptions

    _, (networks,) = cut_networks([prompt], TaskOptions(lora_folder=folder, syntax=syntax))
    return hashes_text([*files, *((one.name, one.path) for one in networks)])
