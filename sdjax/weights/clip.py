"""CLIP's contrastive head beside a text tower: image tower, both projections, temperature.

The folder holds transformers' CLIPModel names without the text tower, which lives in `text_encoder/`.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sdjax.config import VisionConfig
from sdjax.errors import SdjaxError
from sdjax.types import Params
from sdjax.weights.configs import read_json
from sdjax.weights.convert import from_file_tensors, param_shapes, to_file_tensors
from sdjax.weights.folder import TRANSFORMERS, read_weights
from sdjax.weights.names import make_rows

#: our field -> transformers' name in vision_config
FIELDS = {"size": "image_size", "patch": "patch_size", "width": "hidden_size", "layers": "num_hidden_layers",
          "heads": "num_attention_heads", "mlp_width": "intermediate_size", "activation": "hidden_act",
          "projection": "projection_dim"}


def save_clip(params: Params, config: VisionConfig, folder: str | Path) -> None:
    """Writes {"vision", "text_projection" [width, projection], "logit_scale" []} to `folder`."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    tensors = to_file_tensors(params["vision"], make_rows(config))
    tensors["text_projection.weight"] = np.ascontiguousarray(np.asarray(params["text_projection"]).T)
    tensors["logit_scale"] = np.asarray(params["logit_scale"])
    vision = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    content = {"model_type": "clip", "projection_dim": config.projection, "vision_config": vision}
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in scratch.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(scratch)


def load_clip(folder: str | Path) -> tuple[VisionConfig, Params]:
    """(config, {"vision", "text_projection", "logit_scale"}) of a folder that `save_clip` wrote."""
    folder = Path(folder)
    fields = read_json(folder / "config.json").get("vision_config", {})
    if missing := [name for name in FIELDS.values() if name not in fields]:
        raise SdjaxError(f"{folder / 'config.json'}: vision_config lacks {', '.join(missing)}")
    config = VisionConfig(**{ours: fields[theirs] for ours, theirs in FIELDS.items()})
    tensors = read_weights(folder, TRANSFORMERS, "vision")
    try:
        head = {"text_projection": jnp.asarray(tensors.pop("text_projection.weight").T),
                "logit_scale": jnp.asarray(tensors.pop("logit_scale"))}
    except KeyError as error:
        raise SdjaxError(f"{folder / 'model.safetensors'}: has no tensor {error}") from None
    if head["text_projection"].shape[1:] != (config.projection,) or head["logit_scale"].shape != ():
        shapes = ", ".join(f"{name} {list(value.T.shape)}" for name, value in head.items())
        raise SdjaxError(f"{folder / 'model.safetensors'}: {shapes}, should be [{config.projection}, width] and []")
    vision = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder))
    return config, {"vision": vision, **head}
