"""Conds that callers give in place of prompts: checked against the model, repeated for several pictures each."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of, needs_nothing_beside
from sdjax.types import Cond


def check_cond(config: Config, name: str, cond: Cond, counts: Sequence[int] | None = None) -> int:
    """Returns the batch of a Cond that a caller gives as `name`.

    counts: the batches that are possible; None: any.
    SdjaxError: it is not what this model takes.
    """
    shapes = {field: np.shape(value) for field, value in cond._asdict().items() if value is not None}
    check_context(config, name, shapes)
    check_vector(config, name, shapes, needed=counts is None)
    extra = config.unet.in_channels - config.vae.latent_channels
    if "concat" in shapes and (len(shapes["concat"]) != 4 or not extra or shapes["concat"][-1] != extra):
        takes = f"should be [B, h, w, {extra}]" if extra else f"{config.name} takes none"
        raise SdjaxError(f"{name}.concat has shape {list(shapes['concat'])}: {takes}")
    if not shapes:  # a model that is conditioned on nothing
        return 1
    batches = {shape[0] for shape in shapes.values()}
    if len(batches) > 1 or 0 in batches:
        raise SdjaxError(
            f"{name} has fields of {', '.join(map(str, sorted(batches)))} images, should have the same number"
        )
    (batch,) = batches
    if counts is not None and batch not in counts:
        raise SdjaxError(f"{name} is of {batch} images, should be of {' or '.join(map(str, sorted(set(counts))))}")
    for field, value in cond._asdict().items():
        if value is not None and not np.isfinite(np.asarray(value, np.float32)).all():
            raise SdjaxError(f"{name}.{field} has NaN or infinite values")
    return batch


def check_context(config: Config, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """SdjaxError if the context or the mix of a Cond is not what this model takes. shapes: of the Cond's fields.

    A Cond without a context stands for the empty prompt if the model has a text tower and the Cond something else.
    """
    unet, context = config.unet, shapes.get("context", ())
    if not unet.cross:
        for field in {"context", "mix"} & set(shapes):
            raise SdjaxError(f"{name}.{field} has shape {list(shapes[field])}: {config.name} takes none")
        return
    if config.text is not None and shapes and not {"context", "mix"} & set(shapes):
        return
    if len(context) not in (3, 4) or context[-1] != unet.context_dim or (len(context) == 4) != ("mix" in shapes):
        raise SdjaxError(
            f"{name}.context has shape {list(context)}, should be [B, L, {unet.context_dim}], or [B, P, L, "
            f"{unet.context_dim}] with a mix [B, P]"
        )
    if "mix" in shapes and shapes["mix"] != context[:2]:
        raise SdjaxError(f"{name}.mix has shape {list(shapes['mix'])}, should be {list(context[:2])}")


def check_vector(config: Config, name: str, shapes: Mapping[str, tuple[int, ...]], needed: bool) -> None:
    """SdjaxError if the vector of a Cond is not what this model takes. shapes: of the Cond's fields.

    needed: must it be there? A negative takes the prompt's.
    """
    unet, found = config.unet, shapes.get("vector")
    if not unet.takes_vector and found is not None:
        raise SdjaxError(f"{name}.vector has shape {list(found)}: {config.name} takes none")
    width, needed = unet.vector or 1, needed and unet.takes_vector
    if needed and found is None and "concat" not in shapes:  # a task may bring both
        return
    if (needed or found is not None) and (found is None or len(found) != 2 + ("mix" in shapes) or found[-1] != width):
        raise SdjaxError(f"{name}.vector has shape {list(found or ())}, should be [B, {width}]")


def check_beside(config: Config, prompt: Any, own: str | None = None) -> None:
    """SdjaxError if the model needs something beside x that neither the prompt brings nor the task itself.

    own: what the task brings, "mask" or None.
    """
    family = family_of(config)
    if family.vector == "picture" and not (isinstance(prompt, Cond) and prompt.vector is not None):
        raise SdjaxError(f"sd {config.name}: takes a picture, give a Cond, as sdjax.encode_picture returns it")
    if not stands_beside(prompt) and (own is None or family.concat != own):
        needs_nothing_beside(config)


def stands_beside(prompt: Any) -> bool:
    """Is `prompt` a Cond that brings what stands beside x?"""
    return isinstance(prompt, Cond) and prompt.concat is not None


def repeated(cond: Cond, times: int) -> Cond:
    """Returns a Cond with each image `times` times in a row, as numpy arrays."""
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), times, axis=0), cond)
