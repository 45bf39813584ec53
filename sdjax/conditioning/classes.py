"""Classes -> Cond: rows of the class table, as contexts of one token."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sdjax.checks import is_whole
from sdjax.errors import SdjaxError
from sdjax.model.value import StableDiffusion
from sdjax.networks.labels.network import ClassTable
from sdjax.types import Cond


def encode_classes(sd: StableDiffusion, classes: int | Sequence[int]) -> Cond:
    """Returns the Cond of B classes, with context float32 [B, 1, D].

    classes: one class or several, from 0 on; sd.config.classes says how many there are, and whether the last one is the
        null class, which stands for none.
    SdjaxError: a model that takes no classes, or a class that it does not have.
    """
    config = sd.config.classes
    if config is None:
        raise SdjaxError(f"classes: {sd.config.name} takes none")
    found = [classes] if is_whole(classes, 0) or not np.ndim(classes) else list(classes)
    for value in found:
        if not is_whole(value, 0, config.classes - 1):
            raise SdjaxError(f"classes {value!r}: whole numbers from 0 to {config.classes - 1} for {sd.config.name}")
    ids = jnp.asarray([int(value) for value in found], jnp.int32)
    return Cond(ClassTable(config).apply({"params": sd.params["classes"]}, ids))


def null_cond(sd: StableDiffusion) -> Cond:
    """Returns the Cond of nothing, of one image: the unconditional half of guidance.

    SdjaxError: the model was not trained with a null class.
    """
    config = sd.config.classes
    if config is None or not config.null:
        raise SdjaxError(
            f"guidance_scale: {sd.config.name} has no null, guide it by 1, or give a Cond as negative_prompt"
        )
    return encode_classes(sd, config.classes - 1)
