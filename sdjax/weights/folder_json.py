"""The JSON files of a diffusers folder <-> Config.

Reading is strict where it matters: a field that would change the computation must have the one value that this package
computes (CHECKED), a field of the UNet or the VAE that nobody knows must be unset.
"""

# ruff: noqa: C408 (field names read best as keywords)

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjax.errors import SdjaxError
from sdjax.families.sd import PRESETS, Config, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.text.tokenizer import special_ids

VERSION = "0.35.0"  # of diffusers, whose layout this is

#: Fields that would change the computation, with the only value that is supported (also what a missing one means).
CHECKED: dict[str, dict[str, Any]] = {
    "unet": dict(
        center_input_sample=False, flip_sin_to_cos=True, freq_shift=0, mid_block_type="UNetMidBlock2DCrossAttn",
        only_cross_attention=False, downsample_padding=1, mid_block_scale_factor=1, act_fn="silu", norm_eps=1e-5,
        transformer_layers_per_block=1, num_attention_heads=None, dual_cross_attention=False, class_embed_type=None,
        addition_embed_type=None, num_class_embeds=None, resnet_time_scale_shift="default",
        resnet_skip_time_act=False, resnet_out_scale_factor=1.0, time_embedding_type="positional",
        conv_in_kernel=3, conv_out_kernel=3, attention_type="default"),
    "vae": dict(in_channels=3, out_channels=3, act_fn="silu", shift_factor=None, latents_mean=None, latents_std=None,
                use_quant_conv=True, use_post_quant_conv=True, mid_block_add_attention=True),
    "text": dict(layer_norm_eps=1e-5),
    "schedule": dict(beta_schedule="scaled_linear", trained_betas=None, thresholding=False, clip_sample=False),
}

MOST, MOST_LAYERS = 1 << 20, 100  # of widths and other numbers, of layers: no model comes near, and a table stays small

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}  # diffusers' name -> ours

#: Fields without influence here: of training, of caching, and the sampler's own (samplers are chosen at the call).
IGNORED = {
    "unet": {"dropout", "addition_embed_type_num_heads"},
    "vae": {"sample_size", "force_upcast"},
}


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SdjaxError(f"{path}: no such file; a diffusers folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SdjaxError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise SdjaxError(f"{path}: holds a {type(value).__name__}, should be an object")
    return value


class Fields:
    """One part's config.json: `take` reads a field, `finish` refuses what is left and matters.

    A missing field, or one that is null, is its default: older versions wrote fewer.
    """

    def __init__(self, part: str, path: Path):
        self.part, self.path, self.values = part, path, read_json(path)
        if part == "text" and isinstance(nested := self.values.get("text_config"), dict):
            self.values = nested  # a whole CLIP's config, image tower included

    def take(self, name: str, default: Any = None, kind: type = int, most: float = MOST) -> Any:
        """One value; numbers (float takes whole ones too) lie above 0 and up to `most`."""
        value = self.values.pop(name, None)
        value = default if value is None else value
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be {kind.__name__}")
        if kind in (int, float) and not 0 < value <= most:
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be above 0 and at most {most}")
        return kind(value)

    def take_list(self, name: str, default: Any, length: int | None = None) -> tuple:
        """A list, or one value for every level."""
        value = self.values.pop(name, None)
        value = default if value is None else value
        value = [value] * (length or 1) if isinstance(value, (int, str)) else value
        kind = type(default[0] if isinstance(default, tuple) else default)
        if not isinstance(value, list | tuple) or not 0 < len(value) <= MOST_LAYERS or length not in (
                None, len(value)) or not all(type(entry) is kind for entry in value):
            count = length or "some"
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be a list of {count} {kind.__name__} entries")
        if kind is int and not all(0 < entry <= MOST for entry in value):
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be above 0 and at most {MOST}")
        return tuple(value)

    def divides(self, name: str, parts: int, wholes: tuple[int, ...]) -> None:
        if any(whole % parts for whole in wholes):
            raise SdjaxError(f"{self.path}: {name} is {parts}, which does not divide {', '.join(map(str, wholes))}")

    def finish(self) -> None:
        for name, only in CHECKED[self.part].items():
            value = self.values.pop(name, None)
            each = value if isinstance(value, list) else [only if value is None else value]  # a list is one a level
            if any(entry != only for entry in each):
                raise SdjaxError(f"{self.path}: {name} is {value!r}, only {only!r} is supported")
        if self.part in IGNORED:  # transformers and the schedulers write many fields that are not the network's
            for name in sorted(self.values):
                if self.values[name] not in (None, False) and name[0] != "_" and name not in IGNORED[self.part]:
                    raise SdjaxError(f"{self.path}: unknown field {name} = {self.values[name]!r}")


def read_config(folder: str | Path, name: str | None = None) -> Config:
    """The Config of a diffusers folder, a preset if it equals one, else called `name` or as the folder is.

    Raises SdjaxError naming the file and the field that is not supported.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    if not str(index.get("_class_name", "")).startswith("StableDiffusion") or "text_encoder_2" in index:
        raise SdjaxError(f"{folder / 'model_index.json'}: _class_name is {index.get('_class_name')!r}, "
                         "should be StableDiffusionPipeline (or its img2img, inpainting forms)")
    unet, sample_size = read_unet(Fields("unet", folder / "unet" / "config.json"))
    vae = read_vae(Fields("vae", folder / "vae" / "config.json"))
    text = read_text(Fields("text", folder / "text_encoder" / "config.json"), folder / "tokenizer")
    schedule = read_schedule(Fields("schedule", folder / "scheduler" / "scheduler_config.json"))
    if unet.context_dim != text.width:
        raise SdjaxError(f"{folder}: unet cross_attention_dim {unet.context_dim} is not the text width {text.width}")
    config = Config(name or folder.name, text, vae, unet, schedule, sample_size * vae.factor)
    return next((preset for preset in PRESETS.values() if preset == replace(config, name=preset.name)), config)


def read_unet(fields: Fields) -> tuple[UNetConfig, int]:
    channels = fields.take_list("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down = fields.take_list("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), levels)
    up = fields.take_list("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, levels)
    if not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"} or up != tuple(
            name.replace("Down", "Up") for name in reversed(down)):
        raise SdjaxError(f"{fields.path}: down_block_types {list(down)} with up_block_types {list(up)}, should be "
                         "(CrossAttn)DownBlock2D and the same backwards")
    config = UNetConfig(
        in_channels=fields.take("in_channels", 4), out_channels=fields.take("out_channels", 4), channels=channels,
        blocks=fields.take("layers_per_block", 2, most=MOST_LAYERS),
        attention=tuple(name.startswith("Cross") for name in down),
        heads=fields.take_list("attention_head_dim", 8, levels),  # diffusers' name for the head count
        context_dim=fields.take("cross_attention_dim", 1280), groups=fields.take("norm_num_groups", 32),
        linear_projection=fields.take("use_linear_projection", False, bool),
        upcast_attention=fields.take("upcast_attention", False, bool))
    fields.divides("norm_num_groups", config.groups, channels)
    for width, heads, attends in zip(channels, config.heads, (*config.attention[:-1], True), strict=True):
        if attends:
            fields.divides("attention_head_dim (the number of heads)", heads, (width,))
    sample_size = fields.take("sample_size", 64)
    fields.finish()
    return config, sample_size


def read_vae(fields: Fields) -> VAEConfig:
    channels = fields.take_list("block_out_channels", (64,))
    for name, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if set(fields.take_list(name, only, len(channels))) != {only}:
            raise SdjaxError(f"{fields.path}: {name} should be {only} at every level")
    config = VAEConfig(
        channels, fields.take("layers_per_block", 1, most=MOST_LAYERS), fields.take("latent_channels", 4),
        fields.take("norm_num_groups", 32), fields.take("scaling_factor", 0.18215, float))
    fields.divides("norm_num_groups", config.groups, channels)
    fields.finish()
    return config


def read_text(fields: Fields, tokenizer: Path) -> TextConfig:
    """Token ids come from the tokenizer: text_encoder/config.json of SD 1.5 has wrong ones (0, 2 and 1)."""
    bos, eos, pad = special_ids(tokenizer)
    activation = fields.take("hidden_act", "quick_gelu", str)
    if activation not in ("quick_gelu", "gelu"):
        raise SdjaxError(f"{fields.path}: hidden_act is {activation!r}, should be quick_gelu or gelu")
    config = TextConfig(
        vocab_size=fields.take("vocab_size", 49408), length=fields.take("max_position_embeddings", 77),
        width=fields.take("hidden_size", 512), layers=fields.take("num_hidden_layers", 12, most=MOST_LAYERS),
        heads=fields.take("num_attention_heads", 8), mlp_width=fields.take("intermediate_size", 2048),
        activation=activation, bos_token=bos, eos_token=eos, pad_token=pad)
    fields.divides("num_attention_heads", config.heads, (config.width,))
    if max(bos, eos, pad) >= config.vocab_size:
        raise SdjaxError(f"{tokenizer}: its ids go up to {max(bos, eos, pad)}, the text encoder's to "
                         f"{config.vocab_size - 1}")
    fields.finish()
    return config


def read_schedule(fields: Fields) -> ScheduleConfig:
    prediction = fields.take("prediction_type", "epsilon", str)
    if prediction not in PREDICTIONS:
        raise SdjaxError(f"{fields.path}: prediction_type is {prediction!r}, should be one of {', '.join(PREDICTIONS)}")
    if "beta_schedule" not in fields.values:
        raise SdjaxError(f"{fields.path}: no beta_schedule, should be scaled_linear")
    zero_terminal_snr = fields.take("rescale_betas_zero_snr", False, bool)
    if zero_terminal_snr and prediction == "epsilon":
        raise SdjaxError(f"{fields.path}: rescale_betas_zero_snr is true with prediction_type 'epsilon', "
                         "should be v_prediction")
    config = ScheduleConfig(
        timesteps=fields.take("num_train_timesteps", 1000), beta_start=fields.take("beta_start", 0.0001, float, 0.999),
        beta_end=fields.take("beta_end", 0.02, float, 0.999),
        prediction=PREDICTIONS[prediction], zero_terminal_snr=zero_terminal_snr)
    fields.finish()
    return config


def folder_configs(config: Config) -> dict[str, dict[str, Any]]:
    """Path -> content of every JSON file but the tokenizer's."""
    unet, vae, text, schedule = config.unet, config.vae, config.text, config.schedule
    cross = lambda side: [("CrossAttn" if flag else "") + side for flag in unet.attention]
    head = lambda name: {"_class_name": name, "_diffusers_version": VERSION}
    inpainting = unet.in_channels == 2 * unet.out_channels + 1
    index = head("StableDiffusionInpaintPipeline" if inpainting else "StableDiffusionPipeline") | dict(
        feature_extractor=[None, None], image_encoder=[None, None], requires_safety_checker=False,
        safety_checker=[None, None], scheduler=["diffusers", "DDIMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"])
    unet_json = head("UNet2DConditionModel") | CHECKED["unet"] | dict(
        sample_size=config.size // vae.factor, in_channels=unet.in_channels, out_channels=unet.out_channels,
        block_out_channels=unet.channels, layers_per_block=unet.blocks, attention_head_dim=unet.heads,
        down_block_types=cross("DownBlock2D"), up_block_types=cross("UpBlock2D")[::-1],
        cross_attention_dim=unet.context_dim, norm_num_groups=unet.groups,
        use_linear_projection=unet.linear_projection, upcast_attention=unet.upcast_attention)
    levels = len(vae.channels)
    vae_json = head("AutoencoderKL") | CHECKED["vae"] | dict(
        sample_size=config.size, block_out_channels=vae.channels, layers_per_block=vae.blocks,
        latent_channels=vae.latent_channels, norm_num_groups=vae.groups, scaling_factor=vae.scaling,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels)
    text_json = CHECKED["text"] | dict(
        architectures=["CLIPTextModel"], model_type="clip_text_model", vocab_size=text.vocab_size,
        max_position_embeddings=text.length, hidden_size=text.width, num_hidden_layers=text.layers,
        num_attention_heads=text.heads, intermediate_size=text.mlp_width, hidden_act=text.activation,
        projection_dim=text.width, attention_dropout=0.0, initializer_factor=1.0, initializer_range=0.02,
        bos_token_id=text.bos_token, eos_token_id=text.eos_token, pad_token_id=text.pad_token)
    scheduler = head("DDIMScheduler") | CHECKED["schedule"] | dict(
        num_train_timesteps=schedule.timesteps, beta_start=schedule.beta_start, beta_end=schedule.beta_end,
        prediction_type={ours: name for name, ours in PREDICTIONS.items()}[schedule.prediction], steps_offset=1,
        set_alpha_to_one=False, rescale_betas_zero_snr=schedule.zero_terminal_snr,
        timestep_spacing="trailing" if schedule.zero_terminal_snr else "leading")
    return {"model_index.json": index, "unet/config.json": unet_json, "vae/config.json": vae_json,
            "text_encoder/config.json": text_json, "scheduler/scheduler_config.json": scheduler}
