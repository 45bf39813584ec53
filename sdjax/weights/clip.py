"""CLIP's contrastive head beside a text tower: image tower, both projections, temperature.

Our own folders hold transformers' CLIPModel names without the text tower, which lives in `text_encoder/`; transformers'
hold both towers and a tokenizer.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.sd import TextConfig, VisionConfig
from sdjax.files import whole
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.networks.rows import make_rows
from sdjax.nn.layers import ACTIVATIONS
from sdjax.text.tokenizer import load_tokenizer
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors, param_shapes, placed, to_file_tensors
from sdjax.weights.folder import TRANSFORMERS, read_weights
from sdjax.weights.folder_json import Fields, read_json, read_text

#: our field -> transformers' name in vision_config
FIELDS = {"size": "image_size", "patch": "patch_size", "width": "hidden_size", "layers": "num_hidden_layers",
          "heads": "num_attention_heads", "mlp_width": "intermediate_size", "activation": "hidden_act",
          "projection": "projection_dim"}

#: What a field of vision_config means that is not there: transformers' CLIPVisionConfig.
DEFAULTS = {"image_size": 224, "patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "quick_gelu"}


def save_clip(params: Params, config: VisionConfig, folder: str | Path) -> None:
    """Writes {"vision", "text_projection" [width, projection], "logit_scale" []} to `folder`."""
    folder = Path(folder)
    tensors = to_file_tensors(params["vision"], make_rows(config))
    tensors["text_projection.weight"] = np.ascontiguousarray(np.asarray(params["text_projection"]).T)
    tensors["logit_scale"] = np.asarray(params["logit_scale"])
    vision = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    content = {"model_type": "clip", "projection_dim": config.projection, "vision_config": vision}
    with whole(folder / "model.safetensors") as weights, whole(folder / "config.json") as described:
        write_tensors(weights, tensors)
        write_json(described, content)


def read_vision_config(path: Path) -> VisionConfig:
    whole = read_json(path)
    fields = whole.get("vision_config")
    if not isinstance(fields, dict):
        raise SdjaxError(f"{path}: has no vision_config")
    fields = DEFAULTS | fields | {"projection_dim": whole.get("projection_dim", 512)}
    for ours, theirs in FIELDS.items():
        kind = str if ours == "activation" else int
        if type(fields[theirs]) is not kind or (kind is int and fields[theirs] < 1):
            want = "text" if kind is str else "a whole number from 1"
            raise SdjaxError(f"{path}: {theirs} is {fields[theirs]!r}, should be {want}")
    if fields["hidden_act"] not in ACTIVATIONS or fields.get("layer_norm_eps", 1e-5) != 1e-5:
        raise SdjaxError(f"{path}: hidden_act {fields['hidden_act']!r} with layer_norm_eps "
                         f"{fields.get('layer_norm_eps', 1e-5)!r}, should be {' or '.join(ACTIVATIONS)} with 1e-05")
    return VisionConfig(**{ours: fields[theirs] for ours, theirs in FIELDS.items()})


def load_clip(folder: str | Path) -> tuple[VisionConfig, Params]:
    """(config, {"vision", "text_projection", "logit_scale"}) of a folder that `save_clip` wrote, or of a CLIPModel."""
    folder = Path(folder)
    config = read_vision_config(folder / "config.json")
    tensors = {name: value for name, value in read_weights(folder, TRANSFORMERS, "vision").items()
               if not name.startswith("text_model.")}
    try:
        head = {"text_projection": placed(tensors.pop("text_projection.weight").T),
                "logit_scale": placed(tensors.pop("logit_scale"))}
    except KeyError as error:
        raise SdjaxError(f"{folder / 'model.safetensors'}: has no tensor {error}") from None
    if head["text_projection"].shape[1:] != (config.projection,) or head["logit_scale"].shape != ():
        shapes = ", ".join(f"{name} {list(value.T.shape)}" for name, value in head.items())
        raise SdjaxError(f"{folder / 'model.safetensors'}: {shapes}, should be [{config.projection}, width] and []")
    vision = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder))
    return config, {"vision": vision, **head}


def load_clip_text(folder: str | Path) -> tuple[TextConfig, Params, Any] | None:
    """(config, parameters, tokenizer) of the text tower in a CLIPModel's folder; None in one that `save_clip` wrote."""
    folder = Path(folder)
    if "text_config" not in read_json(folder / "config.json"):
        return None
    config = read_text(Fields("text", folder / "config.json"), folder)
    tensors = {name: value for name, value in read_weights(folder, TRANSFORMERS, "text").items()
               if name.startswith("text_model.")}
    params = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder))
    return config, params, load_tokenizer(folder)
