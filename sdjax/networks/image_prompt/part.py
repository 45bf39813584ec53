"""The IP-Adapter as a Part."""

from typing import Any

from sdjax.errors import SdjaxError
from sdjax.networks.fields import Fields
from sdjax.networks.image_prompt.config import ImagePromptConfig
from sdjax.networks.image_prompt.names import image_prompt_rows
from sdjax.networks.image_prompt.network import ImagePromptNet
from sdjax.networks.part import Part, example


def inputs(config: ImagePromptConfig) -> tuple:
    return (example(1, 2, config.seen) if config.plus else example(1, config.seen),)


def read(fields: Fields, *_: Any) -> ImagePromptConfig:
    """SdjaxError: IP-Adapters are single files, which have no config.json."""
    raise SdjaxError(f"{fields.path}: an IP-Adapter is a file without a config.json")


def write(config: ImagePromptConfig) -> dict[str, Any]:
    """Returns nothing: files of IP-Adapters have no config.json."""
    return {}


IMAGE_PROMPT = Part(ImagePromptConfig, ImagePromptNet, inputs, image_prompt_rows, read, write)
