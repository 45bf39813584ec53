"""Reads IP-Adapters: tencent-ailab's .safetensors and .bin files, with the CLIP image tower that they look with.

adapter = sdjax.load_image_prompt("ip-adapter_sd15.safetensors", "models/image_encoder")
images = sdjax.txt2img(sd, "a bird", image_prompt=(adapter, picture), image_prompt_scale=0.6)
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.tensors import read_checkpoint
from sdjax.model.image_prompt import ImagePrompt
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.clip.fields import read_vision
from sdjax.networks.fields import Fields
from sdjax.networks.image_prompt.config import HEAD, ImagePromptConfig
from sdjax.networks.table import make_rows, param_shapes
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors
from sdjax.weights.folder import TRANSFORMERS, read_weights
from sdjax.weights.hub import fetch_inside

#: Tensors by which a file says that it is another kind of IP-Adapter: pattern -> what it is.
OTHERS = {
    r"image_proj\.perceiver_resampler\..+": "a FaceID plus, which takes face embeddings",
    r"ip_adapter\.\d+\.to_\w+_lora\..+": "a FaceID, which takes face embeddings",
    r"image_proj\.proj\.3\.weight": "a full-face IP-Adapter",
    r"image_proj\.proj\.2\.weight": "a FaceID, which takes face embeddings",
}
ENCODERS = "ViT-H/14 belongs to those for SD 1 and to *_vit-h, bigG to *_vit-G and the others for SDXL"

Shapes = Mapping[str, tuple[int, ...]]


def load_image_prompt(source: str | Path, image_encoder: str | Path | ImagePrompt) -> ImagePrompt:
    """Reads an IP-Adapter (base or plus) for SD 1 or SDXL, and the image tower that it was trained with.

    source: a .safetensors or .bin file, or one inside of a hub repository: org/name/models/ip-adapter_sd15.bin.
    image_encoder: a folder of transformers' CLIPVisionModelWithProjection, one inside of a hub repository
        (org/name/models/image_encoder), or a loaded IP-Adapter, whose tower is taken: several share one in memory.
    SdjaxError: it is something else, a tensor is missing, unexpected or of another shape, or the tower is another one.
    """
    for name, value, kinds in (
        ("source", source, (str, Path)),
        ("image_encoder", image_encoder, (str, Path, ImagePrompt)),
    ):
        if not isinstance(value, kinds):
            raise SdjaxError(f"{name} is {type(value).__name__}: the name of a file or folder expected")
    path = Path(source)
    if not path.exists():
        path = fetch_inside(str(source))
    if path.is_dir():
        raise SdjaxError(f"{path}: a folder; name the IP-Adapter's file in it, .safetensors or .bin")
    tensors = read_checkpoint(path)[0]
    config = config_of({name: tuple(np.shape(value)) for name, value in tensors.items()}, path)
    params = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(path))
    if isinstance(image_encoder, ImagePrompt):
        vision, tower, where = image_encoder.vision, image_encoder.tower, "that of the other IP-Adapter"
    else:
        (vision, tower), where = read_tower(image_encoder), image_encoder
    seen = vision.width if config.plus else vision.projection
    if seen != config.seen:
        what = "states" if config.plus else "embeddings"
        raise SdjaxError(f"image_encoder {where}: gives {what} of {seen}, {path} takes {config.seen}; {ENCODERS}")
    return ImagePrompt(config, params, vision, tower)


def read_tower(source: str | Path) -> tuple[VisionConfig, Params]:
    """Returns the image tower in a folder of transformers' CLIPVisionModelWithProjection, or of a whole CLIPModel."""
    folder = Path(source)
    if not folder.exists():
        folder = fetch_inside(str(source))
    if (folder / "image_encoder").is_dir():
        folder = folder / "image_encoder"
    if not folder.is_dir():
        raise SdjaxError(f"image_encoder {folder}: a folder with config.json and model.safetensors expected")
    config = read_vision(Fields(folder / "config.json"))
    tensors = read_weights(folder, TRANSFORMERS, "vision")
    own = ("vision_model.", "visual_projection.")
    return config, from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder), own=own)


def config_of(shapes: Shapes, path: Path) -> ImagePromptConfig:
    """Returns the config of an IP-Adapter by its tensors' shapes. SdjaxError: the file is something else."""
    for name in shapes:
        for pattern, what in OTHERS.items():
            if re.fullmatch(pattern, name):
                raise SdjaxError(f"{path}: holds {name[:80]}, so it is {what}, which is not supported")
    keys = {int(match[1]): shape for name, shape in shapes.items() if (match := re.fullmatch(KEY, name))}
    strange = [number for number in keys if number % 2 == 0]
    if not keys or strange or sorted(keys) != [*range(1, 2 * len(keys), 2)] or any(len(s) != 2 for s in keys.values()):
        said = f"numbers them {sorted(keys)[:6]}" if keys else "has none"
        raise SdjaxError(f"{path}: no IP-Adapter: matrices ip_adapter.1.to_k_ip.weight, 3, 5 ... expected, it {said}")
    layers = tuple(keys[number][0] for number in sorted(keys))
    context = keys[1][1]

    def shape(name: str, sides: int = 2) -> tuple[int, ...]:
        found = shapes.get(f"image_proj.{name}", ())
        if len(found) != sides:
            raise SdjaxError(f"{path}: no image_proj.{name} of {sides} sides, so neither a base nor a plus IP-Adapter")
        return found

    if "image_proj.proj.weight" in shapes:
        wide, seen = shape("proj.weight")
        if not context or wide % context:
            raise SdjaxError(f"{path}: image_proj.proj.weight makes {wide} numbers, no tokens of {context}")
        return ImagePromptConfig(layers, seen, context, wide // context)
    _, tokens, width = shape("latents", 3)
    inner = shape("layers.0.0.to_q.weight")[0]
    if inner % HEAD:
        raise SdjaxError(f"{path}: image_proj.layers.0.0.to_q.weight makes {inner} numbers, no heads of {HEAD}")
    blocks = 0
    while f"image_proj.layers.{blocks}.0.to_q.weight" in shapes:
        blocks += 1
    mlp, seen = shape("layers.0.1.1.weight")[0], shape("proj_in.weight")[1]
    return ImagePromptConfig(layers, seen, context, tokens, True, width, blocks, inner // HEAD, mlp)


KEY = r"ip_adapter\.(\d{1,6})\.to_k_ip\.weight"
