"""The names that LoRA files give the layers of a model: one table, made from the model's own rows of tensors.

A tensor's name in a file is a layer's name and an ending ("lora_down.weight") that says which factor it is. Only the
ending is cut off, since nothing else in a name can be divided safely: in kohya's names the dots of a path are
underscores, and paths have underscores of their own. The whole rest is looked up in the table, which holds for each
layer

    kohya        lora_unet_<path>, lora_te_<path>; of SDXL lora_te1_ and lora_te2_; and lycoris_<path>
    diffusers    <path> alone, unet.<path>, text_encoder.<path>, text_encoder_2.<path>, and the oldest
                 <path of an attention>.processor.to_q_lora
    peft         base_model.model.<path>
    ComfyUI      diffusion_model.<path>, text_encoders.clip_l.transformer.<path>

where <path> is diffusers' path of the layer or, of the UNet, its path in CompVis' and Stability's single files, and a
text tower's begins with "text_model." or does not.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from sdjax.families.config import Config
from sdjax.families.family import Place
from sdjax.families.table import family_of
from sdjax.networks.rows import TensorRow
from sdjax.networks.table import make_rows


class Layer(NamedTuple):
    """A layer of a model that a LoRA file may change: the rows of its weight and of its bias."""

    part: str  # of the model's parameters: "unet", "text" or "text_2"
    name: str  # diffusers' path of the layer
    weight: TensorRow | None
    bias: TensorRow | None


#: How the names of each folder's layers begin, with underscores for dots and with dots.
PREFIXES = {
    "unet": (("lora_unet_", "lycoris_"), ("unet.", "", "base_model.model.", "base_model.model.unet.")),
    "text_encoder": (
        ("lora_te_", "lora_te1_"),
        ("text_encoder.", "base_model.model.text_encoder.", "text_encoders.clip_l.transformer.", "clip_l.transformer."),
    ),
    "text_encoder_2": (
        ("lora_te2_",),
        (
            "text_encoder_2.",
            "base_model.model.text_encoder_2.",
            *("text_encoders.clip_g.transformer.", "clip_g.transformer."),
        ),
    ),
}

#: Besides, of single files' names of the UNet.
SINGLE = ("", "unet.", "diffusion_model.", "model.diffusion_model.", "base_model.model.")

#: The ending of a tensor's name -> the factor that it is. The name between dots is that of peft's adapter.
FACTORS = {
    r"(?:lora_down|lora_A(?:\.\w+)?|(?:lora\.|lora_linear_layer\.)?down)\.weight": "down",
    r"(?:lora_up|lora_B(?:\.\w+)?|(?:lora\.|lora_linear_layer\.)?up)\.weight": "up",
    r"lora_B(?:\.\w+)?\.bias": "up_bias",
    r"lora_mid\.weight": "mid",
    r"(?:lora\.|lora_linear_layer\.)?alpha": "alpha",
    r"dora_scale": "dora_scale",
    r"lora_magnitude_vector(?:\.\w+)?(?:\.weight)?": "magnitude",
} | {
    rf"{name}(?:\.\w+)?": name
    for name in (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        *("diff", "diff_b", "w_norm", "b_norm"),
    )
}

ENDING = re.compile(rf"\.(?:{'|'.join(f'(?P<f{i}>{pattern})' for i, pattern in enumerate(FACTORS))})$")


def factor_of(name: str) -> tuple[str, str] | None:
    """Returns (the layer's name, the factor) of a tensor's name: "a.b.lora_down.weight" -> ("a.b", "down"), or None if
    it ends in no factor's name."""
    match = ENDING.search(name)
    return match and (name[: match.start()], [*FACTORS.values()][int(match.lastgroup[1:])])


@lru_cache(maxsize=8)
def layers_by_name(config: Config) -> Mapping[str, Layer]:
    """Returns every name that a file may give a layer of this model -> the layer. Do not modify it: it is cached."""
    found: dict[str, Layer] = {}
    for part, place in family_of(config).parts.items():
        if place.folder in PREFIXES:
            for layer, single in layers_of(part, place, config):
                for name in spellings(layer, place, single):
                    found.setdefault(name, layer)  # of both towers' plain paths, the first one's
    return found


def layers_of(part: str, place: Place, config: Config) -> Iterator[tuple[Layer, str | None]]:
    """Yields each layer of a part with the name that single files have for it, without the part's prefix.

    The name is None where single files keep the layer's weight in one tensor with others, and for text towers.
    """
    rows: dict[str, dict[str, TensorRow]] = {}
    for row in make_rows(getattr(config, part), prefix=place.prefix):
        name, _, kind = row.diffusers.rpartition(".")
        if kind in ("weight", "bias"):
            rows.setdefault(name, {})[kind] = row
    for name, found in rows.items():
        row = found.get("weight") or found["bias"]
        stacked = row.compvis_operation.startswith(("split", "stacked"))
        plain = row.compvis is not None and not stacked and part == "unet"
        single = row.compvis.removeprefix(f"{place.prefix}.").rpartition(".")[0] if plain else None
        yield Layer(part, name, found.get("weight"), found.get("bias")), single


def spellings(layer: Layer, place: Place, single: str | None) -> Iterator[str]:
    """Yields all names that files may give a layer."""
    flat, dotted = PREFIXES[place.folder]
    paths = [layer.name]
    if place.folder != "unet":
        paths.append(layer.name.removeprefix("text_model."))
        dotted += ("base_model.model.", "")
    for path in dict.fromkeys(paths):
        yield from (f"{prefix}{path.replace('.', '_')}" for prefix in flat)
        for prefix in dotted:
            yield from (f"{prefix}{spelled}" for spelled in (path, *oldest(path)))
    if single is not None:
        yield from (f"{prefix}{single.replace('.', '_')}" for prefix in flat)
        yield from (f"{prefix}{single}" for prefix in SINGLE)


#: The last words of the paths of an attention's layers -> diffusers' names of 2023 for their LoRAs.
OLDEST = {
    ".to_q": ".processor.to_q_lora",
    ".to_k": ".processor.to_k_lora",
    ".to_v": ".processor.to_v_lora",
    ".to_out.0": ".processor.to_out_lora",
    ".q_proj": ".to_q_lora",
    ".k_proj": ".to_k_lora",
    ".v_proj": ".to_v_lora",
    ".out_proj": ".to_out_lora",
}


def oldest(path: str) -> Iterator[str]:
    """Yields diffusers' name of 2023 of an attention's layer."""
    for now, then in OLDEST.items():
        if path.endswith(now):
            yield path.removesuffix(now) + then
