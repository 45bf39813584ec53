"""Conds that callers give in place of prompts: checked against the model, repeated for several pictures each."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.types import Cond


def check_cond(config: Config, name: str, cond: Cond, counts: Sequence[int] | None = None) -> int:
    """Returns the batch of a Cond that a caller gives as `name`.

    counts: the batches that are possible; None: any.
    SdjaxError: it is not what this model takes.
    """
    unet, extra = config.unet, config.unet.in_channels - config.vae.latent_channels
    shapes = {field: np.shape(value) for field, value in cond._asdict().items() if value is not None}
    context = shapes.get("context", ())
    if len(context) not in (3, 4) or context[-1] != unet.context_dim or (len(context) == 4) != ("mix" in shapes):
        raise SdjaxError(
            f"{name}.context has shape {list(context)}, should be [B, L, {unet.context_dim}], or [B, P, L, "
            f"{unet.context_dim}] with a mix [B, P]"
        )
    if "mix" in shapes and shapes["mix"] != context[:2]:
        raise SdjaxError(f"{name}.mix has shape {list(shapes['mix'])}, should be {list(context[:2])}")
    if "vector" in shapes:
        raise SdjaxError(f"{name}.vector has shape {list(shapes['vector'])}: {config.name} takes none")
    if "concat" in shapes and (len(shapes["concat"]) != 4 or not extra or shapes["concat"][-1] != extra):
        takes = f"should be [B, h, w, {extra}]" if extra else f"{config.name} takes none"
        raise SdjaxError(f"{name}.concat has shape {list(shapes['concat'])}: {takes}")
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


def stands_beside(prompt: Any) -> bool:
    """Is `prompt` a Cond that brings what stands beside x?"""
    return isinstance(prompt, Cond) and prompt.concat is not None


def repeated(cond: Cond, times: int) -> Cond:
    """Returns a Cond with each image `times` times in a row, as numpy arrays."""
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), times, axis=0), cond)
