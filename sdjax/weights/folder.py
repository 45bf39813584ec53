"""Reads and writes diffusers folders: a folder per network with config.json and weights, and model_index.json on top.

Weights are read from safetensors or torch's .bin, in one file or in shards that an index names, in full precision or as
the "fp16" variant. Written are safetensors. Writing is atomic: a new folder is written next to the old one, then
renamed.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.family import Place
from sdjax.families.table import FAMILIES, family_of
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.formats.tensors import read_tensors
from sdjax.networks.bert.config import BertTextConfig
from sdjax.networks.bert.part import BERT_TEXT
from sdjax.networks.clip.part import CLIP_IMAGE, CLIP_TEXT, CLIP_TEXT_POOLED, CLIP_TEXT_XL
from sdjax.networks.fields import read_json
from sdjax.networks.table import make_rows, param_shapes
from sdjax.text.tokenizer import load_tokenizer, write_tokenizer
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors, to_file_tensors
from sdjax.weights.folder_json import folder_configs, read_config, tokenizer_folder
from sdjax.weights.spellings import renamed

#: (stem, suffix) of the files that transformers and diffusers keep weights in, the preferred one first
TRANSFORMERS = (("model", "safetensors"), ("pytorch_model", "bin"))
DIFFUSERS = (("diffusion_pytorch_model", "safetensors"), ("diffusion_pytorch_model", "bin"))


OF_TRANSFORMERS = (CLIP_TEXT, CLIP_TEXT_XL, CLIP_TEXT_POOLED, BERT_TEXT, CLIP_IMAGE)


def stems_of(place: Place) -> tuple[tuple[str, str], ...]:
    """Returns the names of the files that hold a network's weights."""
    return TRANSFORMERS if place.part in OF_TRANSFORMERS else DIFFUSERS


#: folder of a network, in any family -> the names of its weights' files
FOLDERS = {place.folder: stems_of(place) for family in FAMILIES for place in family.parts.values()}


def weights_file(names: Collection[str], stems: tuple[tuple[str, str], ...], variant: str | None = None) -> str | None:
    """Returns which of a folder's file names holds its weights or is the index of their shards, or None if none does.

    Preferred are `variant`, full precision, fp16, bf16, then other variants by their names; safetensors before .bin.
    """
    others = {
        match[1]
        for stem, suffix in stems
        for name in names
        if (
            match := re.fullmatch(rf"{stem}\.([\w-]+)\.{suffix}", name)
            or re.fullmatch(rf"{stem}\.{suffix}\.index\.([\w-]+)\.json", name)
        )
        and not re.fullmatch(r"\d{5}-of-\d{5}", match[1])
    }
    order = [f".{variant}"] * bool(variant) + ["", ".fp16", ".bf16"] + [f".{other}" for other in sorted(others)]
    wanted = (
        name
        for kind in order
        for stem, suffix in stems
        for name in (f"{stem}{kind}.{suffix}", f"{stem}.{suffix}.index{kind}.json")
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


SPELLED = {"image": "vision", "text_2": "text"}  # parts whose other spellings are another's


def read_weights(
    folder: Path, stems: tuple[tuple[str, str], ...], part: str, variant: str | None = None
) -> dict[str, np.ndarray]:
    """Returns all tensors in the folder of one part, by their current names.

    stems: the names of the files to look for, `TRANSFORMERS` or `DIFFUSERS`.
    part: whose other spellings are translated (see `spellings.OLD_NAMES`).
    variant: the preferred variant, "fp16" and the like; see `weights_file`.
    SdjaxError: the folder has no weights, or a tensor twice.
    """
    found = weights_file(file_names(folder), stems, variant)
    if found is None:
        stem, suffix = stems[0]
        raise SdjaxError(f"{folder}: no {stem}.{suffix} there, nor a variant, shards or {stems[-1][0]}.{stems[-1][1]}")
    tensors, where = {}, {}
    for name in shard_names(folder / found) if found.endswith(".json") else [found]:
        for current, value in renamed(read_tensors(folder / name), part, folder / name).items():
            if current in tensors:
                raise SdjaxError(f"{folder}: {current} is there twice, in {where[current]} and in {name}")
            tensors[current], where[current] = value, name
    return tensors


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def read_params(folder: str | Path, config: Config, variant: str | None = None) -> Params:
    """Returns the parameters of a diffusers folder, a tree for each of its family's parts, in the files' dtypes.

    variant: see `weights_file`; a part that has no such files is read from others.
    SdjaxError: what does not fit `config`, or no part has files of the variant.
    """
    folder, params, parts = Path(folder), {}, family_of(config).parts
    if variant is not None and not any(
        f".{variant}." in (weights_file(file_names(folder / place.folder), stems_of(place), variant) or "")
        for place in parts.values()
    ):
        raise SdjaxError(f"variant {variant!r}: {folder} has no weights of that variant")
    for part, place in parts.items():
        layers = config.text.layers if part == "text" else -1
        params[part] = read_part(folder / place.folder, part, place, getattr(config, part), variant, layers)
    return params


def read_part(
    folder: Path, part: str, place: Place, module: Any, variant: str | None = None, text_layers: int = -1
) -> Params:
    """Returns the parameters of one network, of config `module`, in its own folder. The rest as for `read_weights` and
    `from_file_tensors`."""
    tensors = read_weights(folder, stems_of(place), SPELLED.get(part, part), variant)
    rows, shapes, own = make_rows(module), param_shapes(module), place.part.own
    return from_file_tensors(tensors, rows, shapes, source=str(folder), text_layers=text_layers, own=own)


def read_folder(folder: str | Path, name: str | None = None, variant: str | None = None) -> tuple[Config, Params, Any]:
    """Returns (config, params, tokenizer) of a diffusers folder.

    name: names the config if it equals no preset.
    variant: see `read_params`.
    """
    config = read_config(folder, name)
    return config, read_params(folder, config, variant), read_tokenizer(Path(folder), config)


def read_tokenizer(folder: Path, config: Config) -> Any:
    """Returns the tokenizer in a diffusers folder of a model of this config, or None for a model without text."""
    if config.text is None:
        return None
    place = family_of(config).parts["text"]
    return load_tokenizer(folder / tokenizer_folder(place), isinstance(config.text, BertTextConfig))


def write_folder(path: str | Path, config: Config, params: Params, tokenizer: Any) -> None:
    """Writes a model as a diffusers folder. Values keep their dtype.

    An older model folder at `path` is replaced; other files in it stay. SdjaxError: `path` exists and is no model
    folder, or a model with a text tower has no tokenizer.
    """
    path = Path(path).resolve()  # through a link: another disk's folder cannot be moved here
    if path.exists() and not (path / "model_index.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise SdjaxError(f"{path}: exists and is not a model folder; name a new folder")
    if tokenizer is None and config.text is not None:
        raise SdjaxError("sd.tokenizer is None: a diffusers folder needs a tokenizer")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        for name, content in folder_configs(config).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(new / name, content)
        for part, place in family_of(config).parts.items():
            tensors, (stem, suffix) = (
                to_file_tensors(params[part], make_rows(getattr(config, part))),
                stems_of(place)[0],
            )
            write_tensors(new / place.folder / f"{stem}.{suffix}", tensors)
        if isinstance(config.text, BertTextConfig):
            tokenizer.save_pretrained(str(new / "tokenizer"))
        else:
            for tower in family_of(config).towers:
                place = family_of(config).parts[tower.part]
                write_tokenizer(tokenizer, getattr(config, tower.part), new / tokenizer_folder(place))
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
