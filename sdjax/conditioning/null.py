"""The Cond of nothing: the unconditional half of guidance."""

import jax.numpy as jnp

from sdjax.conditioning.classes import encode_classes
from sdjax.conditioning.layouts import encode_layout
from sdjax.conditioning.towers import encode_prompt
from sdjax.errors import SdjaxError
from sdjax.model.value import StableDiffusion
from sdjax.types import Cond


def null_cond(sd: StableDiffusion) -> Cond:
    """Returns the Cond of one image that asks for nothing: the empty prompt, the null class, the empty layout,
    a token of zeros.

    What stands beside x is not in it: both halves share that. SdjaxError: the model was not trained with a null.
    """
    config = sd.config
    if not config.null:
        raise SdjaxError(f"guidance_scale: {config.name} has no null, guide it by 1, or give a Cond as negative_prompt")
    if config.text is not None:
        return encode_prompt(sd, "", syntax="plain")
    if config.image is not None:
        return Cond(jnp.zeros((1, 1, config.unet.context_dim)))
    if config.class_table is not None:
        return encode_classes(sd, config.classes - 1)
    return encode_layout(sd, [[]])
