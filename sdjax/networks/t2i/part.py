"""The T2I-Adapter as a Part."""

from typing import Any

from sdjax.errors import SdjaxError
from sdjax.networks.fields import MOST_LAYERS, Fields, class_name
from sdjax.networks.part import Part, example
from sdjax.networks.t2i.config import KINDS, AdapterConfig
from sdjax.networks.t2i.names import adapter_rows
from sdjax.networks.t2i.network import Adapter

CLASS = "T2IAdapter"


def read_adapter(fields: Fields, *_: Any) -> AdapterConfig:
    """Returns the AdapterConfig in a config.json. SdjaxError: names the file and the field that is not supported."""
    kind = fields.take("adapter_type", KINDS[0], str)
    if kind not in KINDS:
        raise SdjaxError(f"{fields.path}: adapter_type is {kind!r}, should be one of {', '.join(KINDS)}")
    config = AdapterConfig(
        kind,
        fields.take("in_channels", 3),
        fields.take_list("channels", (320, 640, 1280, 1280)),
        fields.take("num_res_blocks", 2, most=MOST_LAYERS),
        fields.take("downscale_factor", 8, most=64),
    )
    if config.light:  # diffusers counts three and repeats the last
        config = AdapterConfig(
            kind, config.picture_channels, (*config.channels, config.channels[-1]), config.blocks, config.unshuffle
        )
    fields.finish({}, set())
    return config


def write_adapter(config: AdapterConfig) -> dict[str, Any]:
    """Returns the content of a T2I-Adapter's config.json."""
    return class_name(CLASS) | {
        "adapter_type": config.kind,
        "in_channels": config.picture_channels,
        "channels": config.channels[:-1] if config.light else config.channels,
        "num_res_blocks": config.blocks,
        "downscale_factor": config.unshuffle,
    }


def inputs(config: AdapterConfig) -> tuple:
    side = config.unshuffle * 2 ** (len(config.channels) - 1)
    return (example(1, side, side, config.picture_channels),)


T2I_ADAPTER = Part(AdapterConfig, Adapter, inputs, adapter_rows, read_adapter, write_adapter)
