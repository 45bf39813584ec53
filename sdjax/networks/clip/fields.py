"""The towers' config.json <-> TextConfig and VisionConfig."""

# ruff: noqa: C408 (field names read best as keywords)

from pathlib import Path
from typing import Any

from sdjax.errors import SdjaxError
from sdjax.networks.clip.config import NormalizerConfig, TextConfig, VisionConfig
from sdjax.networks.fields import MOST_LAYERS, Fields, class_name
from sdjax.nn.layers import ACTIVATIONS
from sdjax.text.tokenizer import special_ids

#: Fields that would change the computation, with the only value that is supported (also what a missing one means).
CHECKED = dict(layer_norm_eps=1e-5)


def read_text(fields: Fields, tokenizer: Path, back: int = 0, pooled: bool = False) -> TextConfig:
    """Returns the TextConfig in a text tower's config.json, or in that of a whole CLIP with an image tower.

    tokenizer: the folder that the token ids come from. SD 1.5's text_encoder/config.json has wrong ones (0, 2 and 1).
    back, pooled: see `TextConfig`: how many layers before the end its states come from, and has it a projection?
    SdjaxError: names the file and the field that is not supported.
    """
    fields.enter("text_config")
    bos, eos, pad = special_ids(tokenizer)
    activation = fields.take("hidden_act", "quick_gelu", str)
    if activation not in ("quick_gelu", "gelu"):
        raise SdjaxError(f"{fields.path}: hidden_act is {activation!r}, should be quick_gelu or gelu")
    config = TextConfig(
        vocab_size=fields.take("vocab_size", 49408),
        length=fields.take("max_position_embeddings", 77),
        width=fields.take("hidden_size", 512),
        layers=fields.take("num_hidden_layers", 12, most=MOST_LAYERS),
        heads=fields.take("num_attention_heads", 8),
        mlp_width=fields.take("intermediate_size", 2048),
        activation=activation,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        back=back,
        projection=fields.take("projection_dim", 512) if pooled else None,
    )
    fields.divides("num_attention_heads", config.heads, (config.width,))
    if max(bos, eos, pad) >= config.vocab_size:
        raise SdjaxError(
            f"{tokenizer}: its ids go up to {max(bos, eos, pad)}, the text encoder's to {config.vocab_size - 1}"
        )
    fields.finish(CHECKED)
    return config


def write_text(config: TextConfig) -> dict[str, Any]:
    """Returns the content of the text tower's config.json."""
    return CHECKED | dict(
        architectures=["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=config.vocab_size,
        max_position_embeddings=config.length,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection or config.width,
        attention_dropout=0.0,
        initializer_factor=1.0,
        initializer_range=0.02,
        bos_token_id=config.bos_token,
        eos_token_id=config.eos_token,
        pad_token_id=config.pad_token,
    )


#: our field -> transformers' name in vision_config
FIELDS = {
    "size": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "projection": "projection_dim",
}

#: The values of fields that vision_config leaves out: the defaults of transformers' CLIPVisionConfig.
DEFAULTS = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
}


def read_vision(source: Fields, *_: Any) -> VisionConfig:
    """Returns the VisionConfig in the config.json of a whole CLIP or of its image tower. SdjaxError: names the file and
    the field that is not supported."""
    path, fields = source.path, source.values.get("vision_config")
    if source.values.get("model_type") == "clip_vision_model":  # an image tower's own
        fields = source.values
    if not isinstance(fields, dict):
        raise SdjaxError(f"{path}: has no vision_config")
    fields = DEFAULTS | fields | {"projection_dim": source.values.get("projection_dim", 512)}
    for ours, theirs in FIELDS.items():
        kind = str if ours == "activation" else int
        if type(fields[theirs]) is not kind or (kind is int and fields[theirs] < 1):
            want = "text" if kind is str else "a whole number from 1"
            raise SdjaxError(f"{path}: {theirs} is {fields[theirs]!r}, should be {want}")
    if fields["hidden_act"] not in ACTIVATIONS or fields.get("layer_norm_eps", 1e-5) != 1e-5:
        raise SdjaxError(
            f"{path}: hidden_act {fields['hidden_act']!r} with layer_norm_eps "
            f"{fields.get('layer_norm_eps', 1e-5)!r}, should be {' or '.join(ACTIVATIONS)} with 1e-05"
        )
    return VisionConfig(**{ours: fields[theirs] for ours, theirs in FIELDS.items()})


def write_vision(config: VisionConfig) -> dict[str, Any]:
    """Returns the content of config.json for CLIP's head: a CLIPModel's without its text tower."""
    vision = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    return {"model_type": "clip", "projection_dim": config.projection, "vision_config": vision}


def write_image_tower(config: VisionConfig) -> dict[str, Any]:
    """Returns the content of the config.json of an image tower alone, transformers' CLIPVisionModelWithProjection."""
    own = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    return dict(architectures=["CLIPVisionModelWithProjection"], model_type="clip_vision_model") | CHECKED | own


def read_normalizer(fields: Fields, *_: Any) -> NormalizerConfig:
    """Returns the NormalizerConfig in a StableUnCLIPImageNormalizer's config.json."""
    return NormalizerConfig(fields.take("embedding_dim", 768))


def write_normalizer(config: NormalizerConfig) -> dict[str, Any]:
    """Returns the content of a StableUnCLIPImageNormalizer's config.json."""
    return class_name("StableUnCLIPImageNormalizer") | dict(embedding_dim=config.width)
