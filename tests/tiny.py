"""A whole narrow model with random weights, for tests of everything that draws pictures."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.families.sd import EMOJI
from sdjax.model.value import StableDiffusion
from sdjax.networks.clip.network import TextTower
from sdjax.networks.unet.network import UNet
from sdjax.networks.vae.network import VAE

CONFIG = replace(
    EMOJI,
    name="tiny",
    size=16,
    text=replace(
        EMOJI.text,
        vocab_size=300,
        length=8,
        width=16,
        layers=1,
        heads=2,
        mlp_width=32,
        bos_token=298,
        eos_token=299,
        pad_token=299,
    ),
    vae=replace(EMOJI.vae, channels=(8, 8), groups=4, scaling=0.37916),
    unet=replace(EMOJI.unet, channels=(8, 16), attention=(False, True), heads=(2, 2), context_dim=16, groups=4),
)


class Letters:
    """A tokenizer that knows letters."""

    def __call__(self, prompts, **_):
        return {"input_ids": [[ord(letter) for letter in prompt] for prompt in prompts]}


def parameters(module, *args):
    """Random everywhere: the zero-initialised layers would make every output 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0).normal
    return jax.tree.unflatten(
        tree, [jnp.asarray(draw(0, 0.3 / leaf.shape[0] ** 0.25, leaf.shape), jnp.float32) for leaf in leaves]
    )


@cache
def tiny(channels: int = 4) -> StableDiffusion:
    """Latents of 8 x 8, pictures of 16 x 16; with 9 channels an inpainting model."""
    config = replace(CONFIG, unet=replace(CONFIG.unet, in_channels=channels))
    x = jnp.zeros((1, 8, 8, channels))
    return StableDiffusion(
        config,
        {
            "text": parameters(TextTower(config.text), jnp.zeros((1, 8), jnp.int32)),
            "unet": parameters(UNet(config.unet), x, jnp.zeros(1), jnp.zeros((1, 8, 16))),
            "vae": parameters(VAE(config.vae), jnp.zeros((1, 16, 16, 3))),
        },
        Letters(),
    )
