"""Classes -> Cond: rows of the class table, as contexts of one token."""

from collections.abc import Sequence

import jax.numpy as jnp

from sdjax.checks import as_array, check_model, is_whole
from sdjax.errors import SdjaxError
from sdjax.model.value import StableDiffusion
from sdjax.networks.labels.network import ClassTable
from sdjax.types import Cond


def encode_classes(sd: StableDiffusion, classes: int | Sequence[int]) -> Cond:
    """Returns the Cond of B classes, with context float32 [B, 1, D].

    classes: one class or several, from 0 on. sd.config.classes says how many there are; if sd.config.null is True, the
        last one is the null class, which stands for none.
    SdjaxError: a model that takes no classes, or a class that it does not have.
    """
    check_model(sd)
    config = sd.config.class_table
    if config is None:
        raise SdjaxError(f"classes: {sd.config.name} takes none")
    found = [classes] if is_whole(classes, 0) or not as_array("classes", classes).ndim else list(classes)
    if not found:
        raise SdjaxError("classes []: at least one expected")
    for value in found:
        if not is_whole(value, 0, config.classes - 1):
            raise SdjaxError(f"classes {value!r}: whole numbers from 0 to {config.classes - 1} for {sd.config.name}")
    ids = jnp.asarray([int(value) for value in found], jnp.int32)
    return Cond(ClassTable(config).apply({"params": sd.params["class_table"]}, ids))
