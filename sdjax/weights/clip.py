"""CLIP's contrastive head, which is used with a text tower: the image tower, both projections and the temperature.

Our own folders use transformers' CLIPModel names, but hold no text tower, which is in `text_encoder/` of the model's
folder. transformers' folders hold both towers and a tokenizer.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.files import written_whole
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.clip.fields import read_text, read_vision, write_vision
from sdjax.networks.fields import Fields, read_json
from sdjax.networks.table import make_rows, param_shapes
from sdjax.text.tokenizer import load_tokenizer
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors, placed, to_file_tensors
from sdjax.weights.folder import TRANSFORMERS, read_weights


def save_clip(params: Params, config: VisionConfig, folder: str | Path) -> None:
    """Writes CLIP's head to `folder`, as model.safetensors and config.json.

    params: {"vision", "text_projection" [width, projection], "logit_scale" []}.
    config: the configuration of the image tower.
    """
    folder = Path(folder)
    tensors = to_file_tensors(params["vision"], make_rows(config))
    tensors["text_projection.weight"] = np.ascontiguousarray(np.asarray(params["text_projection"]).T)
    tensors["logit_scale"] = np.asarray(params["logit_scale"])
    with written_whole(folder / "model.safetensors") as weights, written_whole(folder / "config.json") as described:
        write_tensors(weights, tensors)
        write_json(described, write_vision(config))


def load_clip(folder: str | Path) -> tuple[VisionConfig, Params]:
    """Returns (config, params) of CLIP's head, from a folder that `save_clip` wrote or from transformers' CLIPModel.

    params are {"vision", "text_projection" [width, projection], "logit_scale" []}. SdjaxError: names the file and what
    does not fit.
    """
    folder = Path(folder)
    config = read_vision(Fields(folder / "config.json"))
    tensors = {
        name: value
        for name, value in read_weights(folder, TRANSFORMERS, "vision").items()
        if not name.startswith("text_model.")
    }
    try:
        head = {
            "text_projection": placed(tensors.pop("text_projection.weight").T),
            "logit_scale": placed(tensors.pop("logit_scale")),
        }
    except KeyError as error:
        raise SdjaxError(f"{folder / 'model.safetensors'}: has no tensor {error}") from None
    if head["text_projection"].shape[1:] != (config.projection,) or head["logit_scale"].shape != ():
        shapes = ", ".join(f"{name} {list(value.T.shape)}" for name, value in head.items())
        raise SdjaxError(f"{folder / 'model.safetensors'}: {shapes}, should be [{config.projection}, width] and []")
    vision = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder))
    return config, {"vision": vision, **head}


def load_clip_text(folder: str | Path) -> tuple[TextConfig, Params, Any] | None:
    """Returns (config, params, tokenizer) of the text tower in transformers' CLIPModel folder. Returns None for a
    folder that `save_clip` wrote, which has none. SdjaxError: names the file and what does not fit."""
    folder = Path(folder)
    if "text_config" not in read_json(folder / "config.json"):
        return None
    config = read_text(Fields(folder / "config.json"), folder)
    tensors = {
        name: value
        for name, value in read_weights(folder, TRANSFORMERS, "text").items()
        if name.startswith("text_model.")
    }
    params = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder))
    return config, params, load_tokenizer(folder)
