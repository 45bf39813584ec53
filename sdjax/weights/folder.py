"""The diffusers folder layout: a folder per part, config.json beside safetensors, model_index.json on top.

Writing is atomic: a sibling folder, then a rename.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.config import Config
from sdjax.errors import SdjaxError
from sdjax.text import load_tokenizer, write_tokenizer
from sdjax.types import Params
from sdjax.weights.configs import folder_configs, read_config, read_json
from sdjax.weights.convert import from_file_tensors, param_shapes, to_file_tensors
from sdjax.weights.names import current_name, make_rows
from sdjax.weights.tensors import read_safetensors

#: part -> (its folder, the stem of its weights' file)
PARTS = {"text": ("text_encoder", "model"), "vae": ("vae", "diffusion_pytorch_model"),
         "unet": ("unet", "diffusion_pytorch_model")}


def read_tensors(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """All tensors of folder/stem.safetensors, of its fp16 variant, or of the shards that its index names."""
    index = folder / f"{stem}.safetensors.index.json"
    single = [path for variant in ("", ".fp16") if (path := folder / f"{stem}{variant}.safetensors").is_file()]
    if single:
        paths = single[:1]
    elif index.is_file():
        names = sorted(set(map(str, read_json(index).get("weight_map", {}).values())))
        if bad := [name for name in names if Path(name).name != name]:
            raise SdjaxError(f"{index}: shard {bad[0]!r} is not a plain file name")
        paths = [folder / name for name in names]
    else:
        raise SdjaxError(f"{folder}: no {stem}.safetensors there, and no {stem}.safetensors.index.json")
    tensors = {}
    for path in paths:
        tensors |= read_safetensors(path)
    return tensors


def read_params(folder: str | Path, config: Config) -> Params:
    """{"text", "vae", "unet"} of a diffusers folder, in the files' dtypes."""
    params = {}
    for part, (subfolder, stem) in PARTS.items():
        path, module = Path(folder) / subfolder, getattr(config, part)
        tensors = {current_name(part, name): value for name, value in read_tensors(path, stem).items()}
        params[part] = from_file_tensors(tensors, make_rows(module), param_shapes(module), source=str(path))
    return params


def read_folder(folder: str | Path) -> tuple[Config, Params, Any]:
    """(config, params, tokenizer) of a diffusers folder."""
    config = read_config(folder)
    return config, read_params(folder, config), load_tokenizer(Path(folder) / "tokenizer")


def write_folder(path: str | Path, config: Config, params: Params, tokenizer: Any) -> None:
    """Writes a diffusers folder; values keep their dtype. Only an older model folder at `path` is replaced."""
    from safetensors.numpy import save_file

    path = Path(path)
    if path.exists() and not (path / "model_index.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise SdjaxError(f"{path}: exists and is not a model folder; name a new folder")
    if tokenizer is None:
        raise SdjaxError("sd.tokenizer is None: a diffusers folder needs a tokenizer")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        for name, content in folder_configs(config).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for part, (subfolder, stem) in PARTS.items():
            tensors = to_file_tensors(params[part], make_rows(getattr(config, part)))
            save_file(tensors, new / subfolder / f"{stem}.safetensors", metadata={"format": "pt"})
        write_tokenizer(tokenizer, config.text, new / "tokenizer")
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
