"""Tiny models in the published layout of CompVis/latent-diffusion: configurations, weights by name, layouts.

This module imports numpy alone. MODELS holds each model's configuration as its config.yaml would; checkpoint() draws
the tensors of its file. tests/parity/make_ldm_references.py computes what these models give.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[1] / "data" / "ldm_references.npz"


def _unet(channels: int, multipliers: list[int], attention: list[int], heads: dict, **more) -> dict:
    """Returns a UNet's part of a configuration: 32 channels wide, one block per level."""
    params = {
        "image_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "model_channels": 32,
        "attention_resolutions": attention,
        "num_res_blocks": 1,
        "channel_mult": multipliers,
        **heads,
    }
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params | more}


def _text(depth: int) -> dict:
    """Returns the UNet's fields for a condition that cross-attention reads."""
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": 24}


def _stage(width: int, multipliers: list[int], attention: tuple[int, ...] = (), codes: int = 0, **more) -> dict:
    """Returns a first stage's part of a configuration: VQ with `codes`, or else KL."""
    dd = {
        "double_z": not codes,
        "z_channels": width,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": multipliers,
        "num_res_blocks": 1,
        "attn_resolutions": list(attention),
        "dropout": 0.0,
        **more,
    }
    params = {"embed_dim": width} | ({"n_embed": codes} if codes else {"monitor": "val/rec_loss"})
    target = "VQModelInterface" if codes else "AutoencoderKL"
    loss = {"target": "torch.nn.Identity"}
    return {"target": f"ldm.models.autoencoder.{target}", "params": params | {"ddconfig": dd, "lossconfig": loss}}


def _cond(kind: str, **params) -> dict:
    return {"target": f"ldm.modules.encoders.modules.{kind}", "params": params}


def _model(end: float, key: str, unet: dict, stage: dict, cond: dict | str, **more) -> dict:
    """Returns a whole configuration, whose betas end at `end`."""
    params = {
        "linear_start": 0.0015,
        "linear_end": end,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "image",
        "cond_stage_key": key,
        "image_size": 8,
        "channels": stage["params"]["ddconfig"]["z_channels"],
        "cond_stage_trainable": isinstance(cond, dict) and "params" in cond,
        "monitor": "val/loss_simple_ema",
        **more,
        "unet_config": unet,
        "first_stage_config": stage,
        "cond_stage_config": cond,
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


F4, F8, NONE, FIRST_STAGE = [1, 2, 2], [1, 1, 2, 2], "__is_unconditional__", "__is_first_stage__"
HEAD16, HEADS8 = {"num_head_channels": 16}, {"num_heads": 8}

#: the configurations by name, each like the published one that its comment tells
MODELS = {
    "tiny-classes": _model(  # cin256-v2: one head as wide as the level, no attention in level 0, a null class
        0.0195,
        "class_label",
        _unet(3, [1, 2], [2], {"num_heads": 1}, **_text(1)),
        _stage(3, F4, codes=40),
        _cond("ClassEmbedder", n_classes=7, embed_dim=24, key="class_label"),
        conditioning_key="crossattn",
        use_ema=False,
    ),
    "tiny-classes-old": _model(  # cin256: the classes' number, 1000, is the default's; the first stage's level attends
        0.0195,
        "class_label",
        _unet(4, [1, 2], [2, 1], HEAD16, **_text(1)),
        _stage(4, F8, (32,), codes=40),
        _cond("ClassEmbedder", embed_dim=24, key="class_label"),
        conditioning_key="crossattn",
    ),
    "tiny-layout": _model(  # layout2img-openimages256: transformers three deep
        0.0205,
        "coordinates_bbox",
        _unet(3, [1, 2], [2], HEAD16, **_text(3)),
        _stage(3, F4, codes=40),
        _cond("BERTEmbedder", n_embed=24, n_layer=2, vocab_size=170, max_seq_len=92, use_tokenizer=False),
        conditioning_key="crossattn",
        loss_type="l1",
    ),
    "tiny-map": _model(  # semantic_synthesis256: the factors name no level, so that the middle alone attends
        0.0205,
        "segmentation",
        _unet(3, [1, 2], [32, 16, 8], HEADS8, in_channels=6),
        _stage(3, F4, codes=40),
        _cond("SpatialRescaler", n_stages=2, in_channels=9, out_channels=3),
        concat_mode=True,
        loss_type="l1",
    ),
    "tiny-faces": _model(  # celeba256
        0.0195,
        "class_label",
        _unet(3, [1, 2], [2, 1], HEAD16),
        _stage(3, F4, codes=40),
        NONE,
        concat_mode=False,
    ),
    "tiny-churches": _model(  # lsun_churches256
        0.0155,
        "image",
        _unet(4, [1, 2], [1, 2], HEADS8, use_scale_shift_norm=True, resblock_updown=True),
        _stage(4, F8),
        NONE,
        concat_mode=False,
        scale_by_std=True,
        loss_type="l1",
    ),
    "tiny-inpaint": _model(  # inpainting_big: 3 channels, 3 of the masked picture's latents, 1 of the mask
        0.0205,
        "masked_image",
        _unet(3, [1, 2], [2, 1], HEADS8, in_channels=7, resblock_updown=True),
        _stage(3, F4, codes=40, attn_type="none"),
        FIRST_STAGE,
        concat_mode=True,
        loss_type="l1",
    ),
    "tiny-sr": _model(  # bsr_sr: the small picture is as large as the latents
        0.0155,
        "LR_image",
        _unet(3, [1, 2], [2], HEAD16, in_channels=6),
        _stage(3, F4, codes=40),
        {"target": "torch.nn.Identity"},
        concat_mode=True,
        loss_type="l2",
    ),
    "tiny-text": _model(  # text2img256, with fewer and shorter tokens
        0.0195,
        "caption",
        _unet(3, [1, 2], [2], HEAD16, **_text(1)),
        _stage(3, F4, codes=40),
        _cond("BERTEmbedder", n_embed=24, n_layer=2, vocab_size=60, max_seq_len=12),
        conditioning_key="crossattn",
    ),
}

#: the scale of the latents that a file tells, for scale_by_std
SCALE = np.float32(0.22)


def stream(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 tensor that `name` decides.

    Norms' weights are near 1, biases near 0; tables have a spread of 1, other weights of 1 / sqrt(fan-in).
    """
    noise = stream(name).standard_normal(shape)
    if len(shape) == 1:
        value = name.endswith("weight") + 0.1 * noise
    elif name.endswith(("embedding.weight", "emb.weight")):
        value = noise
    else:
        value = noise / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 standard normal numbers, which `name` decides."""
    return stream(name).standard_normal(shape).astype(np.float32)


def ema_name(name: str) -> str:
    """Returns the name of the average of a tensor `model....`: ema.py drops all dots of what follows."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def betas(params: dict) -> np.ndarray:
    """Returns the float64 betas of a configuration's params: their roots grow linearly."""
    return np.linspace(params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, params["timesteps"]) ** 2


def tensors(name: str, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Returns the tensors of a model's file, given the networks' names and shapes: they, their average, the buffers.

    Where the first stage makes the condition too, the file holds its numbers twice.
    """
    params = MODELS[name]["model"]["params"]
    copied = params["cond_stage_config"] == FIRST_STAGE
    first = lambda key: key.replace("cond_stage_model.", "first_stage_model.") if copied else key
    held = {key: draw(first(key), tuple(shape)) for key, shape in shapes.items()}
    if params.get("use_ema", True):
        for key, shape in shapes.items():
            if key.startswith("model."):
                held[ema_name(key)] = draw(ema_name(key), tuple(shape))
        held["model_ema.decay"] = np.array(0.9999, np.float32)
        held["model_ema.num_updates"] = np.array(1000, np.int32)
    if name != "tiny-map":
        held["betas"] = betas(params).astype(np.float32)
    if params.get("scale_by_std"):
        held["scale_factor"] = np.array(SCALE)
    return held


def checkpoint(name: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a model's file, "state_dict" of the published ones, as float32 (num_updates: int32)."""
    with np.load(PATH) as file:
        return tensors(name, json.loads(file[f"{name}/shapes"].item()))


#: token ids of two texts and of the empty one: [CLS] 2, words, [SEP] 3, padding 0
TEXTS = [[2, 7, 9, 3] + [0] * 8, [2, 41, 59, 18, 18, 33, 3] + [0] * 5]
EMPTY = [2, 3] + [0] * 10

#: what BERTEmbedder reads of layouts, as corners in [0, 1]: label, left, top, right, bottom; and the crop
LAYOUTS = [
    {
        "boxes": [[5, 0.125, 0.375, 0.5, 0.9], [30, 0.3, 0.0, 1.0, 0.45], [5, 0.62, 0.55, 0.8, 1.0]],
        "crop": [0.0, 0.0, 1.0, 1.0],
    },
    {"boxes": [[100, 0.1, 0.2, 0.7, 0.65]], "crop": [0.25, 0.1, 0.9, 0.8]},
    {"boxes": [], "crop": [0.0, 0.0, 1.0, 1.0]},
]
#: its second object lies outside the crop, and taming's builder leaves it out
OUTSIDE = {"boxes": [[7, 0.3, 0.2, 0.6, 0.5], [9, 0.0, 0.0, 0.2, 1.0]], "crop": [0.25, 0.1, 0.9, 0.8]}


def layout_tokens(boxes: list, crop: list, vocabulary: int, objects: int = 30) -> list[int]:
    """Returns the tokens of a layout: three for each object that meets the crop, padded to `objects`; the crop's two.

    A corner is one of side x side places, side = isqrt(vocabulary): 90 of 8192, 13 of 170. Halves go to the even place.
    """
    side, none = math.isqrt(vocabulary), vocabulary - 1
    place = lambda x, y: round(y * (side - 1)) * side + round(x * (side - 1))
    triples = [
        [label, place(left, top), place(right, bottom)]
        for label, left, top, right, bottom in boxes
        if min(right, crop[2]) > max(left, crop[0]) and min(bottom, crop[3]) > max(top, crop[1])
    ]
    triples += [[none] * 3] * (objects - len(triples))
    return [token for triple in triples for token in triple] + [place(*crop[:2]), place(*crop[2:])]
