"""Reads and writes diffusers folders: a folder per network with config.json and weights, and model_index.json on top.

Weights are read from safetensors or torch's .bin, in one file or in shards that an index names, in full precision or as
the "fp16" variant. Written are safetensors. Writing is atomic: a new folder is written next to the old one, then
renamed.
"""

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.sd import SD
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.formats.tensors import read_tensors
from sdjax.networks.clip.part import CLIP_TEXT
from sdjax.networks.fields import read_json
from sdjax.networks.table import make_rows, param_shapes
from sdjax.text.tokenizer import load_tokenizer, write_tokenizer
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors, to_file_tensors
from sdjax.weights.folder_json import folder_configs, read_config
from sdjax.weights.spellings import current_name

#: (stem, suffix) of the files that transformers and diffusers keep weights in, the preferred one first
TRANSFORMERS = (("model", "safetensors"), ("pytorch_model", "bin"))
DIFFUSERS = (("diffusion_pytorch_model", "safetensors"), ("diffusion_pytorch_model", "bin"))

#: part -> (its folder, the names of its weights' files)
PARTS = {
    name: (place.folder, TRANSFORMERS if place.part is CLIP_TEXT else DIFFUSERS) for name, place in SD.parts.items()
}


def weights_file(names: Collection[str], stems: tuple[tuple[str, str], ...]) -> str | None:
    """Returns which of a folder's file names holds its weights or is the index of their shards, or None if none does.

    Full precision is preferred to fp16, and safetensors to .bin.
    """
    wanted = (
        name
        for variant in ("", ".fp16")
        for stem, suffix in stems
        for name in (f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json")
    )
    return next((name for name in wanted if name in names), None)


def shard_names(index: Path) -> list[str]:
    """Returns the sorted file names in an index of shards. SdjaxError: it has none, or one that is a path."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise SdjaxError(f"{index}: has no weight_map from tensors to files")
    if bad := sorted(name for name in set(shards.values()) if Path(name).name != name):
        raise SdjaxError(f"{index}: shard {bad[0]!r} is not a plain file name")
    return sorted(set(shards.values()))


def read_weights(folder: Path, stems: tuple[tuple[str, str], ...], part: str) -> dict[str, np.ndarray]:
    """Returns all tensors in the folder of one part, by their current names.

    stems: the names of the files to look for, `TRANSFORMERS` or `DIFFUSERS`.
    part: whose old names are translated (see `spellings.OLD_NAMES`).
    SdjaxError: the folder has no weights, or a tensor twice.
    """
    found = weights_file({path.name for path in folder.iterdir()} if folder.is_dir() else (), stems)
    if found is None:
        stem, suffix = stems[0]
        raise SdjaxError(
            f"{folder}: no {stem}.{suffix} there, nor its fp16 variant, shards or {stems[-1][0]}.{stems[-1][1]}"
        )
    tensors = {}
    for name in shard_names(folder / found) if found.endswith(".json") else [found]:
        for old, value in read_tensors(folder / name).items():
            if (current := current_name(part, old)) in tensors:
                raise SdjaxError(f"{folder / name}: {current} is there twice, once as {old}")
            tensors[current] = value
    return tensors


def read_params(folder: str | Path, config: Config) -> Params:
    """Returns the parameters {"text", "vae", "unet"} of a diffusers folder, in the files' dtypes. SdjaxError: one
    report of what does not fit `config`."""
    params = {}
    for part, (subfolder, stems) in PARTS.items():
        path, module = Path(folder) / subfolder, getattr(config, part)
        tensors = read_weights(path, stems, part)
        params[part] = from_file_tensors(tensors, make_rows(module), param_shapes(module), source=str(path))
    return params


def read_folder(folder: str | Path, name: str | None = None) -> tuple[Config, Params, Any]:
    """Returns (config, params, tokenizer) of a diffusers folder. `name` names the config if it equals no preset."""
    config = read_config(folder, name)
    return config, read_params(folder, config), load_tokenizer(Path(folder) / "tokenizer")


def write_folder(path: str | Path, config: Config, params: Params, tokenizer: Any) -> None:
    """Writes a model as a diffusers folder. Values keep their dtype.

    An older model folder at `path` is replaced; other files in it stay. SdjaxError: `path` exists and is no model
    folder, or `tokenizer` is None.
    """
    path = Path(path).resolve()  # through a link: another disk's folder cannot be moved here
    if path.exists() and not (path / "model_index.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise SdjaxError(f"{path}: exists and is not a model folder; name a new folder")
    if tokenizer is None:
        raise SdjaxError("sd.tokenizer is None: a diffusers folder needs a tokenizer")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        for name, content in folder_configs(config).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(new / name, content)
        for part, (subfolder, ((stem, suffix), _)) in PARTS.items():
            tensors = to_file_tensors(params[part], make_rows(getattr(config, part)))
            write_tensors(new / subfolder / f"{stem}.{suffix}", tensors)
        write_tokenizer(tokenizer, config.text, new / "tokenizer")
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        for other in list(old.iterdir()) if old.exists() else ():
            if not (path / other.name).exists():
                os.replace(other, path / other.name)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if not old.exists():  # interrupted before everything was moved
            shutil.rmtree(scratch, ignore_errors=True)
