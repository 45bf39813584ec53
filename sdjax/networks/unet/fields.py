"""The UNet's config.json <-> UNetConfig."""

# ruff: noqa: C408 (field names read best as keywords)

from typing import Any

from sdjax.errors import SdjaxError
from sdjax.networks.fields import MOST_LAYERS, Fields, class_name
from sdjax.networks.unet.config import UNetConfig

#: Fields that would change the computation, with the only value that is supported (also what a missing one means).
CHECKED = dict(
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    mid_block_type="UNetMidBlock2DCrossAttn",
    only_cross_attention=False,
    downsample_padding=1,
    mid_block_scale_factor=1,
    act_fn="silu",
    norm_eps=1e-5,
    transformer_layers_per_block=1,
    num_attention_heads=None,
    dual_cross_attention=False,
    class_embed_type=None,
    addition_embed_type=None,
    num_class_embeds=None,
    resnet_time_scale_shift="default",
    resnet_skip_time_act=False,
    resnet_out_scale_factor=1.0,
    time_embedding_type="positional",
    conv_in_kernel=3,
    conv_out_kernel=3,
    attention_type="default",
)

#: Fields of diffusers' UNets that this UNet does not have.
UNSET = (
    "reverse_transformer_layers_per_block",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "addition_time_embed_dim",
    "time_embedding_dim",
    "time_embedding_act_fn",
    "timestep_post_act",
    "time_cond_proj_dim",
    "projection_class_embeddings_input_dim",
    "class_embeddings_concat",
    "mid_block_only_cross_attention",
    "cross_attention_norm",
)

#: Fields without influence here, since they matter only in training.
IGNORED = {"dropout", "addition_embed_type_num_heads"}


def read_unet(fields: Fields, *_: Any) -> UNetConfig:
    """Returns the UNetConfig in a config.json. SdjaxError: names the file and the field that is not supported."""
    channels = fields.take_list("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down = fields.take_list("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), levels)
    up = fields.take_list("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, levels)
    if not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"} or up != tuple(
        name.replace("Down", "Up") for name in reversed(down)
    ):
        raise SdjaxError(
            f"{fields.path}: down_block_types {list(down)} with up_block_types {list(up)}, should be "
            "(CrossAttn)DownBlock2D and the same backwards"
        )
    config = UNetConfig(
        in_channels=fields.take("in_channels", 4),
        out_channels=fields.take("out_channels", 4),
        channels=channels,
        blocks=fields.take("layers_per_block", 2, most=MOST_LAYERS),
        attention=tuple(name.startswith("Cross") for name in down),
        heads=fields.take_list("attention_head_dim", 8, levels),  # diffusers' name for the head count
        context_dim=fields.take("cross_attention_dim", 1280),
        groups=fields.take("norm_num_groups", 32),
        linear_projection=fields.take("use_linear_projection", False, bool),
        upcast_attention=fields.take("upcast_attention", False, bool),
    )
    fields.divides("norm_num_groups", config.groups, channels)
    for width, heads, attends in zip(channels, config.heads, (*config.attention[:-1], True), strict=True):
        if attends:
            fields.divides("attention_head_dim (the number of heads)", heads, (width,))
    fields.finish(CHECKED, IGNORED, UNSET)
    return config


def write_unet(config: UNetConfig) -> dict[str, Any]:
    """Returns the content of the UNet's config.json, without sample_size, which the caller adds."""
    cross = lambda side: [("CrossAttn" if flag else "") + side for flag in config.attention]
    return (
        class_name("UNet2DConditionModel")
        | CHECKED
        | dict(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            attention_head_dim=config.heads,
            down_block_types=cross("DownBlock2D"),
            up_block_types=cross("UpBlock2D")[::-1],
            cross_attention_dim=config.context_dim,
            norm_num_groups=config.groups,
            use_linear_projection=config.linear_projection,
            upcast_attention=config.upcast_attention,
        )
    )
