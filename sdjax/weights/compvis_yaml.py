"""Reads the yaml files by which CompVis and Stability describe their models: a config.yaml beside a checkpoint.

Fields that do not change what a trained model computes (of training, logging, memory) are not looked at.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.errors import SdjaxError, log, prefixed
from sdjax.families.config import Config
from sdjax.families.sd import SD15, SD21
from sdjax.families.table import family_of, own_scale
from sdjax.networks.bert.config import BertTextConfig, LayoutConfig
from sdjax.networks.fields import MOST_LAYERS, Fields
from sdjax.networks.labels.network import ClassConfig
from sdjax.networks.maps.network import MapConfig
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.vae.config import VAEConfig

PREDICTIONS = {"eps": "epsilon", "v": "v", "x0": "x0"}  # their name -> ours

NOTHING, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"


def yaml_beside(path: Path) -> Path | None:
    """Returns the yaml that describes the checkpoint `path`: <stem>.yaml, else config.yaml in its folder, or None."""
    names = (path.with_suffix(".yaml"), path.with_suffix(".yml"), path.parent / "config.yaml")
    return next((name for name in names if name.is_file()), None)


def read_yaml(path: Path) -> Config | None:
    """Returns the Config that a yaml describes, named as the file is; None if it does not describe latent diffusion.

    SdjaxError: it cannot be read, or asks for what is not supported; the message names the file and the field.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise SdjaxError(f"{path}: not a readable yaml ({' '.join(str(error).split())[:120]})") from None
    model = content.get("model") if isinstance(content, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    needed = ("unet_config", "first_stage_config", "cond_stage_config")
    if not isinstance(params, dict) or not all(name in params for name in needed):
        log.warning("%s: does not describe a model of latent diffusion, and is not read", path)
        return None
    fields = Fields(path, params)
    unet, vae = read_unet(section(fields, "unet_config")), read_first_stage(fields)
    condition = read_condition(fields)
    size = fields.values.get("image_size", 64)
    size = max(size) if isinstance(size, list) and size else size
    config = Config(
        name=path.stem,
        vae=vae,
        unet=unet,
        schedule=read_schedule(fields),
        size=vae.factor * Fields(path, {"image_size": size}).take("image_size"),
        **{"text": None} | condition,
    )
    with prefixed(f"{path}: "):
        family_of(config)  # refuses a number of channels that no family has
        config = replace(config, guidance_scale=own_scale(config))
    if unet.cross != any(part in condition for part in ("text", "class_table", "layout")):
        raise SdjaxError(f"{path}: use_spatial_transformer is {unet.cross}, which does not go with cond_stage_config")
    return config


def section(fields: Fields, name: str) -> Fields:
    """Returns the params of a {target, params} in field `name`, with its target as the field "target"."""
    value = fields.values.get(name)
    params = value.get("params", {}) if isinstance(value, dict) else None
    if not isinstance(params, dict):
        raise SdjaxError(f"{fields.path}: {name} is {str(value)[:80]!r}, should have a target and params")
    return Fields(f"{fields.path}: {name}", params | {"target": str(value.get("target", ""))})


def only(fields: Fields, name: str, value: Any, *others: Any) -> None:
    """SdjaxError unless the field is missing, null, or one of the values."""
    found = fields.values.get(name)
    if found is not None and found not in (value, *others):
        raise SdjaxError(f"{fields.path}: {name} is {found!r}, should be {value!r}")


def read_schedule(fields: Fields) -> ScheduleConfig:
    """Returns the noise schedule. CompVis' "linear" is linear in the square roots."""
    only(fields, "beta_schedule", "linear")
    prediction = fields.take("parameterization", "eps", str)
    if prediction not in PREDICTIONS:
        raise SdjaxError(
            f"{fields.path}: parameterization is {prediction!r}, should be one of {', '.join(PREDICTIONS)}"
        )
    return ScheduleConfig(
        timesteps=fields.take("timesteps", 1000),
        beta_start=fields.take("linear_start", 1e-4, float, 0.999),
        beta_end=fields.take("linear_end", 2e-2, float, 0.999),
        prediction=PREDICTIONS[prediction],
    )


def read_unet(fields: Fields) -> UNetConfig:
    """Returns the UNet of a unet_config. attention_resolutions are factors; the middle always attends."""
    for name, value in (("use_new_attention_order", False), ("conv_resample", True), ("dims", 2)):
        only(fields, name, value)
    for name in ("num_classes", "n_embed"):
        only(fields, name, None)
    width = fields.take("model_channels", 320)
    channels = tuple(width * multiplier for multiplier in fields.take_list("channel_mult", (1, 2, 4, 8)))
    levels, cross = len(channels), fields.take("use_spatial_transformer", False, bool)
    factors = fields.take_list("attention_resolutions", (8, 4, 2))
    count, wide = (fields.values.get(name, -1) for name in ("num_heads", "num_head_channels"))
    name, value = ("num_heads", count) if wide in (-1, None) else ("num_head_channels", wide)
    value = Fields(fields.path, {name: value}).take(name, 1)
    if name == "num_head_channels" and any(channel % value for channel in channels):
        raise SdjaxError(f"{fields.path}: num_head_channels is {value}, which does not divide {list(channels)}")
    depth = fields.take_list("transformer_depth", 1, levels)
    linear = fields.take("use_linear_in_transformer", False, bool)
    return UNetConfig(
        in_channels=fields.take("in_channels", 4),
        out_channels=fields.take("out_channels", 4),
        channels=channels,
        blocks=fields.take("num_res_blocks", 2, most=MOST_LAYERS),
        attention=tuple(2**level in factors for level in range(levels)),
        heads=tuple(value if name == "num_heads" else channel // value for channel in channels),
        linear_projection=linear,
        upcast_attention=cross and linear,  # SD 2 overflows float16
        cross=cross,
        depth=() if set(depth) == {1} else depth,
        updown=fields.take("resblock_updown", False, bool),
        scale_shift=fields.take("use_scale_shift_norm", False, bool),
        **({"context_dim": fields.take("context_dim", 768)} if cross else {}),
    )


def read_first_stage(fields: Fields) -> VAEConfig:
    """Returns the autoencoder of a first_stage_config. Its attn_resolutions count from its own resolution."""
    stage = section(fields, "first_stage_config")
    kind = stage.values["target"].rsplit(".", 1)[-1]
    if kind not in ("AutoencoderKL", "VQModelInterface", "VQModel"):
        raise SdjaxError(f"{stage.path}: target is {kind!r}, should be AutoencoderKL or VQModelInterface")
    inner = stage.values.get("ddconfig")
    inner = Fields(f"{stage.path} ddconfig", inner if isinstance(inner, dict) else {})
    only(inner, "attn_type", "vanilla", "none", "vanilla-xformers")
    only(inner, "resamp_with_conv", True)
    width, multipliers = inner.take("ch", 128), inner.take_list("ch_mult", (1, 2, 4, 8))
    resolution, latents = inner.take("resolution", 256), inner.take("z_channels", 4)
    attends = inner.values.get("attn_resolutions") or []
    if stage.take("embed_dim", latents) != latents:
        raise SdjaxError(f"{stage.path}: embed_dim is not z_channels, {latents}")
    attention = tuple(resolution // 2**level in attends for level in range(len(multipliers)))
    return VAEConfig(
        channels=tuple(width * multiplier for multiplier in multipliers),
        blocks=inner.take("num_res_blocks", 2, most=MOST_LAYERS),
        latent_channels=latents,
        scaling=fields.take("scale_factor", 1.0, float),
        attention=attention if any(attention) else (),
        middle_attention=inner.values.get("attn_type") != "none",
        codes=None if kind == "AutoencoderKL" else stage.take("n_embed", 8192),
    )


def read_condition(fields: Fields) -> dict[str, Any]:
    """Returns the field of Config that says what makes the condition, and its config; {} for a model without one."""
    value = fields.values["cond_stage_config"]
    if value in (NOTHING, FIRST_STAGE):
        return {}
    if isinstance(value, str):
        raise SdjaxError(f"{fields.path}: cond_stage_config is {value!r}, which is not supported")
    stage = section(fields, "cond_stage_config")
    if stage.values["target"] == "torch.nn.Identity":
        return {}
    kind = stage.values["target"].rsplit(".", 1)[-1]
    if kind == "ClassEmbedder":
        count = stage.take("n_classes", 1000)
        null = count != 1000 and stage.values.get("ucg_rate") != 0  # 1000 is the default, and ImageNet's classes
        return {"class_table": ClassConfig(count, stage.take("embed_dim", 512), null)}
    if kind == "BERTEmbedder":
        sizes = stage.take("vocab_size", 30522), stage.take("max_seq_len", 77)
        sizes += stage.take("n_embed", 512), stage.take("n_layer", 16, most=MOST_LAYERS)
        text = stage.values.get("use_tokenizer") is not False
        return {"text": BertTextConfig(*sizes)} if text else {"layout": LayoutConfig(*sizes)}
    if kind == "SpatialRescaler":
        for name, only_value in (("method", "bilinear"), ("multiplier", 0.5), ("bias", False)):
            only(stage, name, only_value)
        halvings = stage.take("n_stages", 1, most=10)
        return {"map": MapConfig(stage.take("in_channels", 3), stage.take("out_channels", 3), 2**halvings)}
    if kind == "FrozenCLIPEmbedder":
        return {"text": SD15.text}
    if kind == "FrozenOpenCLIPEmbedder":
        return {"text": SD21.text}
    known = "ClassEmbedder, BERTEmbedder, SpatialRescaler, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder"
    raise SdjaxError(f"{stage.path}: target is {kind!r}, should be one of {known}, or {NOTHING}")
