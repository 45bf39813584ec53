"""Shared types and the notation that every file uses.

| name    | meaning                                                                                   |
|---------|-------------------------------------------------------------------------------------------|
| x0      | clean latents, NHWC, scaled to a standard deviation of about 1                            |
| x       | noisy latents: x = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (variance preserving)            |
| eps     | unit Gaussian noise of x's shape                                                          |
| v       | sqrt(abar_t) eps - sqrt(1 - abar_t) x0 (arXiv 2202.00512)                                 |
| sigma   | sqrt((1 - abar_t) / abar_t), the noise level in k-diffusion's variance-exploding variables |
| t       | timestep in [0, 999], int or float, [B]                                                   |
| context | text states for cross-attention, [B, L, D]                                                |
| pixels  | NHWC float32 in [-1, 1]                                                                   |
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax.errors import SdjaxError

Array = jax.Array
Arrays = jax.Array | np.ndarray  # what public functions take: shapes stand in annotations, by jaxtyping
Params = dict[str, Any]  # plain nested dicts of arrays


class Cond(NamedTuple):
    """Whatever a model is conditioned on. It is a pytree, and every leaf has the batch as its first axis.

    A field is None if the model has no such input.
    """

    context: Array | None = None  # [B, L, D] for cross-attention; composed with AND [B, P, L, D]; in a walk keys_values
    mix: Array | None = None  # [B, P]: the weights of composed prompts, see diffusion.guidance.with_guidance
    vector: Array | None = None  # [B, V], or composed [B, P, V]: added to the time embedding, after an MLP of its own
    concat: Array | None = None  # [B, h, w, C]: channels beside x, behind them

    def __or__(self, other: "Cond") -> "Cond":
        """Returns a Cond with the fields of both. SdjaxError: both have the same field."""
        if not isinstance(other, Cond):
            return NotImplemented
        for name, mine, theirs in zip(self._fields, self, other, strict=True):
            if mine is not None and theirs is not None:
                raise SdjaxError(f"{name}: both Conds have it, a | b joins Conds of different fields")
        return Cond(*(theirs if mine is None else mine for mine, theirs in zip(self, other, strict=True)))


class Batch(NamedTuple):
    """One training batch. Every leaf has the example as its first axis.

    `index` is the example's position in the global sequence of batches. All its random numbers depend on it.
    """

    moments: Array  # [B, h, w, 8]: the VAE posterior's mean and log variance, unscaled
    context: Array | None  # [B, L, D]: text states, of a model of text
    index: Array  # uint32 [B]
    given: Array | None = None  # classes [B], tokens of layouts [B, L] or of texts [B, T, L], ids of maps [B, H, W];
    #                             channels [B, h, w, C]; pictures for a control, uint8 [B, H, W, 3]
    vector: Array | None = None  # float32 [B, V], of SDXL: the pooled text, then the features of six sizes
    weight: Array | None = None  # float32 [B], of the examples' losses; None: 1
