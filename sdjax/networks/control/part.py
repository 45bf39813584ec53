"""The ControlNet as a Part."""

from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.fields import read_control, write_control
from sdjax.networks.control.names import control_rows
from sdjax.networks.control.network import ControlNet
from sdjax.networks.part import Part, example


def inputs(config: ControlConfig) -> tuple:
    unet = config.unet
    side = unet.factor
    return (
        example(1, side, side, unet.in_channels),
        example(1),
        example(1, 1, unet.context_dim) if unet.cross else None,
        example(1, side * config.factor, side * config.factor, config.picture_channels),
        example(1, unet.vector or 1) if unet.takes_vector else None,
    )


CONTROLNET = Part(ControlConfig, ControlNet, inputs, control_rows, read_control, write_control)
