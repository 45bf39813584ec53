"""The LoRAs that prompts name: tags are cut out of prompts, files are found in a folder, and models are merged."""

import difflib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sdjax.adapters.lora_files import SETTINGS, WEIGHTS
from sdjax.errors import SdjaxError
from sdjax.formats.tensors import read_checkpoint
from sdjax.tasks.options import TaskOptions
from sdjax.text.syntax import cut_tags
from sdjax.weights.hashes import lora_hash

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")


class Network(NamedTuple):
    """A LoRA that a prompt names."""

    name: str
    path: Path
    weight: float
    text_weight: float


Networks = tuple[Network, ...]  # of one prompt


def cut_networks(prompts: Sequence[str], options: TaskOptions) -> tuple[list[str], list[Networks]]:
    """Returns the prompts without their tags, and what these ask for. With the syntax "plain" tags are text.

    SdjaxError: a tag without a lora_folder, one that cannot be read, or no such LoRA.
    """
    if options.syntax == "plain":
        return list(prompts), [()] * len(prompts)
    found = {}
    for prompt in dict.fromkeys(prompts):
        text, tags = cut_tags(prompt)
        if tags and options.lora_folder is None:
            raise SdjaxError(f"lora_folder None: the folder that holds <lora:{tags[0].name}> of a prompt expected")
        networks = (Network(t.name, find_network(options.lora_folder, t.name), t.weight, t.text_weight) for t in tags)
        found[prompt] = text, tuple(networks)
    texts, networks = zip(*(found[prompt] for prompt in prompts), strict=True)
    return list(texts), list(networks)


def find_network(folder: str | Path, name: str) -> Path:
    """Returns the file or folder in `folder`, or below it, that a tag names. SdjaxError: none, or several."""
    there = entries(Path(folder))
    plain = {path: path.name if path.is_dir() else path.stem for path in there}
    below = {path: path.relative_to(folder).with_name(own).as_posix() for path, own in plain.items()}
    found = [path for path in there if name in (plain[path], below[path], path.name)]
    found = found or [path for path in there if own_name(path, path.stat().st_mtime_ns) == name]
    if len(found) == 1:
        return found[0]
    if found:
        paths = " and ".join(str(path) for path in found[:3])
        raise SdjaxError(f"prompt: <lora:{name}> may be {paths}; give the name with its folder, as {below[found[0]]}")
    near = difflib.get_close_matches(name, plain.values(), n=3, cutoff=0.3) or sorted(plain.values())[:3]
    raise SdjaxError(f"prompt: <lora:{name}> is not in lora_folder {folder}; there are {', '.join(near) or 'none'}")


def entries(folder: Path) -> list[Path]:
    """Returns the files and folders of LoRAs in a folder and below it, in the order of their names."""
    paths = sorted(folder.rglob("*"))
    folders = [
        path for path in paths if path.is_dir() and any((path / name).is_file() for name in (*WEIGHTS, SETTINGS))
    ]
    files = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    return folders + [path for path in files if not {*path.parents} & {*folders}]


@lru_cache(maxsize=4096)
def own_name(path: Path, time: int) -> str | None:
    """Returns the name that kohya's trainer wrote into a file, or None."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        return read_checkpoint(path)[1].get("ss_output_name")
    except SdjaxError:
        return None


def hashes_text(named: Sequence[tuple[str, Path]]) -> str | None:
    """Returns LoRAs (name, file or folder) as the web UI's field says them, "name: hash, name: hash"; None for none."""
    return ", ".join(f"{name}: {lora_hash(path)}" for name, path in dict(named).items()) or None
