"""Reads a UNet or a VAE of its own, to put it in the place of a model's: people's VAE files, Lightning's UNets.

A file has the names of diffusers, or those of CompVis' single files, with or without the prefix that they have there.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError, log, prefixed
from sdjax.families.config import Config
from sdjax.families.distilled import named_distilled
from sdjax.families.table import family_of
from sdjax.networks.fields import Fields
from sdjax.networks.table import make_rows, param_shapes
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors
from sdjax.weights.folder import read_part
from sdjax.weights.spellings import renamed

#: part -> a tensor that it has, by diffusers' name and by CompVis' without the prefix
FIRST = {
    "unet": ("conv_in.weight", "input_blocks.0.0.weight"),
    "vae": ("decoder.mid_block.resnets.0.norm1.weight", "decoder.mid.block_1.norm1.weight"),
}

#: part -> fields of its config that must be the model's, and what they are
FITS = {
    "unet": {
        "context_dim": "takes a context as wide as",
        "vector": "takes beside the timestep a vector of",
        "labels": "takes the numbers of labels, as many as",
    },
    "vae": {"latent_channels": "has channels of latents,"},
}


def replaced(config: Config, params: Params, part: str, source: str | Path) -> tuple[Config, Params]:
    """Returns a model's config and parameters with the part, "unet" or "vae", that `source` holds.

    source: a file; or a folder with config.json and weights, or that of a whole model.
    SdjaxError: it holds no such part, or not one that fits the model.
    """
    if not isinstance(source, (str, Path)) or not Path(source).exists():
        raise SdjaxError(f"{part} {source}: no such file or folder")
    path = Path(source)
    found, own = read_folder(config, part, path) if path.is_dir() else read_file(config, part, path)
    whole = replace(config, **{part: found})
    for name, what in FITS[part].items():
        theirs, ours = getattr(found, name), getattr(getattr(config, part), name)
        if theirs != ours:
            raise SdjaxError(f"{part} {source}: {what} {theirs}; {config.name} has {ours}")
    with prefixed(f"{part} {source}: "):
        family = family_of(whole)
    if family.parts.keys() != family_of(config).parts.keys():
        raise SdjaxError(f"{part} {source}: makes a {family.name} model, {config.name} is none")
    return (named_distilled(whole, path) if part == "unet" else whole), params | {part: own}


def read_folder(config: Config, part: str, path: Path) -> tuple[Any, Params]:
    """Returns a part's config and parameters from a diffusers folder of it, or of a whole model."""
    place = family_of(config).parts[part]
    folder = path / place.folder if (path / "model_index.json").is_file() else path
    fields = Fields(folder / "config.json")
    fields.values.pop("sample_size", None)
    found = place.part.read(fields)
    return found, read_part(folder, part, place, found)


def read_file(config: Config, part: str, path: Path) -> tuple[Any, Params]:
    """Returns a part's config, the model's but for what shapes tell, and its parameters."""
    from sdjax.formats.tensors import read_checkpoint

    place, (theirs, compvis) = family_of(config).parts[part], FIRST[part]
    tensors, _ = read_checkpoint(path)
    prefix = f"{place.prefix}."
    inside = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    if not inside and compvis in tensors:
        inside = {prefix + name: value for name, value in tensors.items()}
    if inside:
        layout, tensors = "compvis", renamed(inside, "single", path)
    elif theirs in tensors:
        layout, tensors = "diffusers", renamed(tensors, part, path)
    else:
        raise SdjaxError(f"{part} {path}: holds no {place.label}, neither {theirs} nor {prefix}{compvis}")
    found = getattr(config, part)
    if part == "unet":
        found = unet_config(found, {name: np.shape(value) for name, value in tensors.items()}, layout, prefix)
    starts = place.part.own if layout == "diffusers" else tuple(prefix + start for start in place.part.own_in_single)
    own = from_file_tensors(tensors, make_rows(found), param_shapes(found), layout, str(path), own=starts)
    return found, own


def unet_config(config: Any, shapes: Mapping[str, tuple[int, ...]], layout: str, prefix: str) -> Any:
    """Returns a UNet's config with the channels that it takes and, of LCM's, the features of the guidance scale."""
    names = ("conv_in.weight", "time_embedding.cond_proj.weight")
    if layout == "compvis":
        names = (f"{prefix}input_blocks.0.0.weight", f"{prefix}time_embed.cond_proj.weight")
    first, scale = (shapes.get(name, ()) for name in names)
    channels = first[1] if len(first) == 4 else config.in_channels
    if channels != config.in_channels:
        log.warning("unet: takes %d channels, the model's took %d", channels, config.in_channels)
    return replace(config, in_channels=channels, guidance=scale[1] if len(scale) == 2 else None)
