"""The UNet as a Part."""

from sdjax.networks.part import Part, example
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.unet.fields import read_unet, write_unet
from sdjax.networks.unet.names import unet_rows
from sdjax.networks.unet.network import UNet

UNET = Part(
    UNetConfig,
    UNet,
    lambda config: (
        example(1, config.factor, config.factor, config.in_channels),
        example(1),
        example(1, 1, config.context_dim) if config.cross else None,
        example(1, config.vector or 1) if config.vector or config.labels else None,
        example(1, config.guidance) if config.guidance else None,
    ),
    unet_rows,
    read_unet,
    write_unet,
)
