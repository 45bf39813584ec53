"""IP-Adapters in a walk: pictures become tokens once a request, and keys and values for the UNet once a walk.

Scales are multiplied into the values, so that they compile nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.devices.placement import copy_over
from sdjax.model.image_prompt import Asked, Keys, check_image_prompts, picture_keys, tokens_of_pictures
from sdjax.model.value import StableDiffusion
from sdjax.nn.kernels.backends import here
from sdjax.tasks.request import Request
from sdjax.types import Params

#: The tokens of each image prompt, of the conditional and of the unconditional side, [B, N, context_dim] each.
Looks = tuple[tuple[np.ndarray, np.ndarray], ...]


class Own(NamedTuple):
    """An IP-Adapter in a walk."""

    params: Params  # of what makes keys and values, on the devices of a chunk
    layers: int
    scale: np.float32


def image_prompts_of(sd: StableDiffusion, request: Request) -> tuple[list[Asked], Looks | None]:
    """Returns the image prompts of a request and their tokens, one for each image; None without any."""
    options, count = request.options, request.count
    asked, looks = check_image_prompts(sd.config, options.image_prompt, options.image_prompt_scale, count), []
    for one in asked:
        with here():
            found = tokens_of_pictures(one, sd.dtype)
        looks.append(tuple(np.repeat(tokens, count // len(tokens), axis=0) for tokens in found))
    return asked, tuple(looks) or None


def keys_of_looks(adapters: Sequence[Own], looks: Looks | None, negative: bool, dtype) -> list[Keys]:
    """Returns what each image prompt adds to one side of guidance, for `with_pictures`."""
    pairs = zip(adapters, looks or (), strict=True)
    return [picture_keys(own.params, seen[negative], own.scale, own.layers, dtype) for own, seen in pairs]


def own_of(asked: Asked, devices: list) -> Own:
    """Returns the adapter of an image prompt on the devices of a chunk."""
    params = {name: leaf for name, leaf in asked.adapter.params.items() if name != "tokens"}
    return Own(copy_over(params, devices), len(asked.adapter.config.layers), np.float32(asked.scale))
