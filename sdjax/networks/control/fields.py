"""A ControlNet's config.json <-> ControlConfig."""

from typing import Any

from sdjax.errors import SdjaxError
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.fields import Fields, class_name
from sdjax.networks.unet.fields import read_conditional, write_unet

CLASS = "ControlNetModel"

#: Fields of a UNet that a ControlNet has not.
OF_UNETS = (
    *("out_channels", "up_block_types", "reverse_transformer_layers_per_block", "time_cond_proj_dim"),
    *("_class_name", "_diffusers_version"),
)

ORDERS = {"rgb": False, "bgr": True}


def read_control(fields: Fields, *_: Any) -> ControlConfig:
    """Returns the ControlConfig in a config.json. SdjaxError: names the file and the field that is not supported."""
    hint = fields.take_list("conditioning_embedding_out_channels", (16, 32, 96, 256))
    if len(hint) < 2:
        raise SdjaxError(f"{fields.path}: conditioning_embedding_out_channels is {list(hint)}, should be two or more")
    order = fields.take("controlnet_conditioning_channel_order", "rgb", str)
    if order not in ORDERS:
        raise SdjaxError(f"{fields.path}: controlnet_conditioning_channel_order is {order!r}, should be rgb or bgr")
    channels, pooled = fields.take("conditioning_channels", 3), fields.take("global_pool_conditions", False, bool)
    down = fields.values.get("down_block_types")
    if isinstance(down, list) and all(isinstance(kind, str) for kind in down):
        fields.values["up_block_types"] = [kind.replace("Down", "Up") for kind in reversed(down)]
        depth = fields.values.get("transformer_layers_per_block")
        if isinstance(depth, list) and len(depth) == len(down):  # 0, where there is no transformer
            pairs = zip(depth, down, strict=True)
            plain = [1 if one == 0 and not kind.startswith("Cross") else one for one, kind in pairs]
            fields.values["transformer_layers_per_block"] = plain
    return ControlConfig(read_conditional(fields), hint, channels, ORDERS[order], pooled)


def write_control(config: ControlConfig) -> dict[str, Any]:
    """Returns the content of a ControlNet's config.json."""
    fields = {name: value for name, value in write_unet(config.unet).items() if name not in OF_UNETS}
    dropped = ("center_input_sample", "dual_cross_attention", "resnet_skip_time_act", "resnet_out_scale_factor")
    dropped = (*dropped, "time_embedding_type", "conv_in_kernel", "conv_out_kernel", "attention_type")
    return (
        class_name(CLASS)
        | {name: value for name, value in fields.items() if name not in dropped}
        | {
            "conditioning_channels": config.picture_channels,
            "conditioning_embedding_out_channels": config.hint,
            "controlnet_conditioning_channel_order": "bgr" if config.bgr else "rgb",
            "global_pool_conditions": config.pooled,
        }
    )
