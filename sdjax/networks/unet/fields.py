"""The UNet's config.json <-> UNetConfig."""

# ruff: noqa: C408 (field names read best as keywords)

from typing import Any

from sdjax.checks import is_whole
from sdjax.errors import SdjaxError
from sdjax.networks.fields import MOST_LAYERS, Fields, class_name
from sdjax.networks.unet.config import UNetConfig

#: Fields that would change the computation, with the only value that is supported (also what a missing one means).
CHECKED = dict(
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    downsample_padding=1,
    mid_block_scale_factor=1,
    act_fn="silu",
    norm_eps=1e-5,
    num_attention_heads=None,
    dual_cross_attention=False,
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
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_embedding_dim",
    "time_embedding_act_fn",
    "timestep_post_act",
    "class_embeddings_concat",
    "mid_block_only_cross_attention",
    "cross_attention_norm",
)

#: Fields without influence here, since they matter only in training.
IGNORED = {"dropout", "addition_embed_type_num_heads"}


#: The same of diffusers' UNet2DModel, which has attention blocks without a context.
CHECKED_ALONE = dict(
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    mid_block_scale_factor=1,
    downsample_padding=1,
    act_fn="silu",
    norm_eps=1e-5,
    add_attention=True,
    time_embedding_type="positional",
    class_embed_type=None,
    num_class_embeds=None,
    attn_norm_num_groups=None,
    num_train_timesteps=None,
)

MIDDLES = {True: "UNetMidBlock2DCrossAttn", False: "UNetMidBlock2D"}  # is there attention in the middle?

TEXT, ALONE = "UNet2DConditionModel", "UNet2DModel"  # diffusers' classes


def read_unet(fields: Fields, *_: Any) -> UNetConfig:
    """Returns the UNetConfig in a config.json. SdjaxError: names the file and the field that is not supported."""
    return read_alone(fields) if fields.values.get("_class_name") == ALONE else read_conditional(fields)


def take_attention(fields: Fields, kind: str, down: tuple, up: tuple, levels: int) -> tuple[bool, ...]:
    """Returns whether each level attends, from the names of the blocks.

    kind: what the names of blocks that attend begin with. down, up: the names if the fields are missing.
    SdjaxError: other blocks, or not the same ones on the way up.
    """
    down = fields.take_list("down_block_types", down, levels)
    up = fields.take_list("up_block_types", up, levels)
    if not set(down) <= {f"{kind}DownBlock2D", "DownBlock2D"} or up != tuple(
        name.replace("Down", "Up") for name in reversed(down)
    ):
        raise SdjaxError(
            f"{fields.path}: down_block_types {list(down)} with up_block_types {list(up)}, should be "
            f"({kind})DownBlock2D and the same backwards"
        )
    return tuple(name.startswith(kind) for name in down)


def read_alone(fields: Fields) -> UNetConfig:
    """Returns the UNetConfig of a UNet2DModel, whose heads are of one width in diffusers; ours may be of several."""
    channels = fields.take_list("block_out_channels", (224, 448, 672, 896))
    levels = len(channels)
    attention = take_attention(fields, "Attn", ("",), ("",), levels)
    widths = channels if None is fields.values.get("attention_head_dim", 8) else ()  # null: one head
    widths = widths or fields.take_list("attention_head_dim", 8, levels)
    fields.values.pop("attention_head_dim", None)
    between = {fields.take(f"{side}sample_type", "conv", str) for side in ("down", "up")}
    shift = fields.take("resnet_time_scale_shift", "default", str)
    if between not in ({"conv"}, {"resnet"}) or shift not in ("default", "scale_shift"):
        raise SdjaxError(
            f"{fields.path}: downsample_type and upsample_type should be conv or resnet, both the same, and "
            "resnet_time_scale_shift default or scale_shift"
        )
    config = UNetConfig(
        in_channels=fields.take("in_channels", 3),
        out_channels=fields.take("out_channels", 3),
        channels=channels,
        blocks=fields.take("layers_per_block", 2, most=MOST_LAYERS),
        attention=attention,
        heads=tuple(max(channel // width, 1) for channel, width in zip(channels, widths, strict=True)),
        groups=fields.take("norm_num_groups", 32),
        cross=False,
        updown=between == {"resnet"},
        scale_shift=shift == "scale_shift",
    )
    fields.divides("norm_num_groups", config.groups, channels)
    fields.finish(CHECKED_ALONE, IGNORED)
    return config


def write_alone(config: UNetConfig) -> dict[str, Any]:
    """Returns the content of the config.json of a UNet without a context."""
    kinds = lambda block: [("Attn" if flag else "") + block for flag in config.attention]
    widths = [channel // heads for channel, heads in zip(config.channels, config.heads, strict=True)]
    between = "resnet" if config.updown else "conv"
    return (
        class_name(ALONE)
        | CHECKED_ALONE
        | dict(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            attention_head_dim=widths[0] if len(set(widths)) == 1 else widths,
            down_block_types=kinds("DownBlock2D"),
            up_block_types=kinds("UpBlock2D")[::-1],
            norm_num_groups=config.groups,
            downsample_type=between,
            upsample_type=between,
            resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        )
    )


def read_conditional(fields: Fields) -> UNetConfig:
    """Returns the UNetConfig of a UNet2DConditionModel."""
    channels = fields.take_list("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down, up = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    attention = take_attention(fields, "CrossAttn", down, up, levels)
    depth = fields.take_list("transformer_layers_per_block", 1, levels)
    alone = fields.take_list("only_cross_attention", False, levels)
    up = take_depths_up(fields, channels, fields.values.get("layers_per_block", 2))
    middle = fields.take("mid_block_type", MIDDLES[True], str)
    if middle not in MIDDLES.values():
        raise SdjaxError(f"{fields.path}: mid_block_type is {middle!r}, should be {' or '.join(MIDDLES.values())}")
    added = take_added(fields)
    labels, vector = take_vector(fields) if added is None else (None, added)
    config = UNetConfig(
        in_channels=fields.take("in_channels", 4),
        out_channels=fields.take("out_channels", 4),
        channels=channels,
        blocks=fields.take("layers_per_block", 2, most=MOST_LAYERS),
        attention=attention,
        heads=fields.take_list("attention_head_dim", 8, levels),  # diffusers' name for the head count
        context_dim=fields.take("cross_attention_dim", 1280),
        groups=fields.take("norm_num_groups", 32),
        linear_projection=fields.take("use_linear_projection", False, bool),
        upcast_attention=fields.take("upcast_attention", False, bool),
        depth=() if set(depth) == {1} else depth,
        self_attention=tuple(not flag for flag in alone) if any(alone) else (),
        labels=labels,
        vector=vector,
        guidance=None if fields.values.get("time_cond_proj_dim") is None else fields.take("time_cond_proj_dim"),
        depth_up=up,
        middle=middle == MIDDLES[True],
        added=added is not None,
    )
    fields.divides("norm_num_groups", config.groups, channels)
    for width, heads, attends in zip(channels, config.heads, (*config.attention[:-1], True), strict=True):
        if attends:
            fields.divides("attention_head_dim (the number of heads)", heads, (width,))
    fields.finish(CHECKED, IGNORED, UNSET)
    return config


def take_depths_up(fields: Fields, channels: tuple[int, ...], blocks: Any) -> tuple[tuple[int, ...], ...]:
    """Returns the transformer blocks on the way up, per level and block, or () if they are those on the way down.

    The file has the last level first, and one number for a level whose blocks are alike.
    """
    name = "reverse_transformer_layers_per_block"
    value = fields.values.pop(name, None)
    if value is None:
        return ()
    each = [[one] * (blocks + 1) if is_whole(one, 1) else one for one in value] if isinstance(value, list) else []
    numbers = [one for level in each if isinstance(level, list) and len(level) == blocks + 1 for one in level]
    whole = is_whole(blocks, 1) and all(is_whole(number, 1, MOST_LAYERS) for number in numbers)
    if not whole or len(numbers) != len(channels) * (blocks + 1):
        raise SdjaxError(f"{fields.path}: {name} is {value!r}, should be layers_per_block + 1 numbers for each level")
    return tuple(map(tuple, reversed(each)))


ADDED_WIDTH = 256  # features of each of SDXL's numbers


def take_added(fields: Fields) -> int | None:
    """Returns the width of SDXL's vector, of pooled text and of numbers as features; None if there is none."""
    kind, features = fields.values.pop("addition_embed_type", None), fields.values.pop("addition_time_embed_dim", None)
    if kind not in (None, "text_time") or (kind == "text_time" and features != ADDED_WIDTH):
        raise SdjaxError(
            f"{fields.path}: addition_embed_type is {kind!r} with addition_time_embed_dim {features!r}, should be "
            f"null, or text_time with {ADDED_WIDTH}"
        )
    return fields.take("projection_class_embeddings_input_dim", 2816) if kind else None


def take_vector(fields: Fields) -> tuple[int | None, int | None]:
    """Returns the number of labels, and the width of the vector, that are added to the time embedding; None: none."""
    kind, labels = fields.take("class_embed_type", "", str), fields.values.pop("num_class_embeds", None)
    width = fields.values.pop("projection_class_embeddings_input_dim", None)
    if kind not in ("", "projection") or (kind and labels) or (kind == "projection") != (width is not None):
        raise SdjaxError(
            f"{fields.path}: class_embed_type is {kind!r}, should be null with num_class_embeds, or projection with "
            "projection_class_embeddings_input_dim"
        )
    found = Fields(fields.path, {"num_class_embeds": labels, "projection_class_embeddings_input_dim": width})
    return labels and found.take("num_class_embeds"), width and found.take("projection_class_embeddings_input_dim")


def write_unet(config: UNetConfig) -> dict[str, Any]:
    """Returns the content of the UNet's config.json, without sample_size, which the caller adds."""
    if not config.cross:
        return write_alone(config)
    if config.updown or config.scale_shift:
        raise SdjaxError("unet: folders of this kind of UNet are not written; give a name in .safetensors")
    cross = lambda side: [("CrossAttn" if flag else "") + side for flag in config.attention]
    return (
        class_name(TEXT)
        | CHECKED
        | dict(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            attention_head_dim=config.heads,
            transformer_layers_per_block=config.depths if config.depth else 1,
            reverse_transformer_layers_per_block=config.depth_up[::-1] or None,
            mid_block_type=MIDDLES[config.middle],
            down_block_types=cross("DownBlock2D"),
            up_block_types=cross("UpBlock2D")[::-1],
            cross_attention_dim=config.context_dim,
            norm_num_groups=config.groups,
            use_linear_projection=config.linear_projection,
            upcast_attention=config.upcast_attention,
            only_cross_attention=[not flag for flag in config.self_attention] or False,
            num_class_embeds=config.labels,
            class_embed_type="projection" if config.vector and not config.added else None,
            addition_embed_type="text_time" if config.added else None,
            addition_time_embed_dim=ADDED_WIDTH if config.added else None,
            projection_class_embeddings_input_dim=config.vector,
            time_cond_proj_dim=config.guidance,
        )
    )
