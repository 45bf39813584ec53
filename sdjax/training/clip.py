"""CLIP's contrastive loss (arXiv 2103.00020)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.clip.network import ImageTower, TextTower, pool_text
from sdjax.nn.layers import precise
from sdjax.types import Array, Params


def alone(tree: Any) -> tuple[Any, int]:
    """Stands for `Layout.gather` on a single device: returns (tree, 0)."""
    return tree, 0


def clip_loss(text: TextConfig, vision: VisionConfig, gather: Callable[[Any], tuple[Any, Any]] = alone) -> Callable:
    """Returns CLIP's loss, a function (params, batch, key) -> (losses [B], metrics).

    params are {"text", "vision", "text_projection", "logit_scale"}; batch is {"pixels": [B, S, S, 3], "ids": [B, L]}.
    metrics["retrieval"] is the share of pictures whose nearest caption is their own.
    gather: that of a `Layout`; with it pictures and captions are compared across all devices.
    """
    text_tower, image_tower = TextTower(text), ImageTower(vision)

    def loss_fn(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        with precise(jnp.float32):
            image = image_tower.apply({"params": params["vision"]}, batch["pixels"])
            states = text_tower.apply({"params": params["text"]}, batch["ids"])
            words = pool_text(states, batch["ids"], text.eos_token) @ params["text_projection"]
            losses, found = clip_contrastive(image, words, params["logit_scale"], gather)
        return losses, {"retrieval": found.mean()}

    return loss_fn


def clip_contrastive(
    image: Array, text: Array, logit_scale: Array, gather: Callable[[Any], tuple[Any, Any]] = alone
) -> tuple[Array, Array]:
    """Symmetric InfoNCE (arXiv 2103.00020, Figure 3). Returns losses [B], and [B] whether the nearest text is its own.

    image, text: embeddings [B, P]; row i of both belongs together.
    logit_scale: the logarithm of the inverse temperature, clipped at ln 100 as CLIP does.
    gather: gather(x) returns the embeddings of all devices and the offset of this device's first one; they are the
        contrastive negatives. The mean over devices of the losses' gradient is that of the whole batch on one device.
    """
    unit = lambda e: e / jnp.linalg.norm(e, axis=-1, keepdims=True)
    image, text = unit(image), unit(text)
    (images, texts), first = gather((image, text))
    scale, own = jnp.exp(jnp.minimum(logit_scale, jnp.log(100.0))), first + jnp.arange(len(image))
    at_own = lambda table: jnp.take_along_axis(table, own[:, None], axis=1)[:, 0]
    to_text, to_image = scale * image @ texts.T, scale * text @ images.T
    right = at_own(jax.nn.log_softmax(to_text, axis=1)) + at_own(jax.nn.log_softmax(to_image, axis=1))
    return -right / 2, jnp.argmax(to_text, axis=1) == own
