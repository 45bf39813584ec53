"""Attention maps: where in a picture the UNet's cross-attention looks at each token of the prompt (arXiv 2210.04885).

    walk = sdjax.txt2img(sd, prompt, output="trajectory")
    maps = sdjax.attention_maps(sd, prompt, walk)                  # [B, L, h, w]; over L they sum to 1
    image = pixels_to_pil(sdjax.decode(sd, walk.latents))[0]
    sdjax.attention_pictures(image, maps[0], sdjax.prompt_words(sd, prompt)[0])   # a PIL sheet, a cell each word

Every position of the latents spreads its attention over the L tokens of the context, in every head of every
cross-attention of the UNet. A map is the mean over the heads, over the layers (resized to the latents' size) and, for a
trajectory, over the evaluations of the model. Each of these evaluations costs one more call of the UNet, conditional
only; sampling that asks for no maps costs nothing extra.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from sdjax.conditioning.text import read_prompts
from sdjax.conditioning.towers import encode_prompt
from sdjax.diffusion.guidance import timesteps_of
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError
from sdjax.image.sheets import contact_sheet
from sdjax.model.functions import check_pictures
from sdjax.model.value import StableDiffusion
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.unet.network import UNet
from sdjax.nn.layers import precise
from sdjax.tasks.engine import Trajectory
from sdjax.text.prompt import stack
from sdjax.types import Array, Arrays, Params


def attention_maps(
    sd: StableDiffusion,
    prompt: str | Sequence[str],
    x: Float[Arrays, "B h w C"] | Trajectory,
    t: Float[Arrays, "#B"] | float | None = None,
    clip_skip: int = 1,
    syntax: str = "a1111",
) -> Float[np.ndarray, "B L h w"]:
    """Returns float32 [B, L, h, w]: the share of its attention that each position of the latents pays to each token.

    prompt: one for all pictures, or one for each.
    x: noisy latents [B, h, w, C] with their timesteps t; or, without t, a trajectory of txt2img or img2img
        (output="trajectory"), whose evaluations are averaged.
    t: timesteps, [B] or one number.
    clip_skip, syntax: see `sdjax.encode_prompt`.
    SdjaxError: prompts composed with AND, latents without t, a trajectory with t, shapes that do not fit.
    """
    if sd.config.unet.takes_vector:
        raise SdjaxError(f"sd {sd.config.name}: attention maps are of models that take text alone")
    cond = encode_prompt(sd, prompt, clip_skip, syntax)
    if cond.mix is not None:
        raise SdjaxError(f"prompt {prompt!r}: composes several with AND, ask for the maps of one at a time")
    if t is None:
        if not hasattr(x, "sigma"):
            raise SdjaxError('t is None: latents need their timesteps; only a walk (output="trajectory") knows them')
        steps, at = x.x, timesteps_of(make_schedule(sd.config.schedule), np.asarray(x.sigma, np.float64), np)
    elif hasattr(x, "sigma"):
        raise SdjaxError("t: x is a walk, which knows its timesteps; leave t out")
    else:
        steps, at = [x], [t]
    config, total = sd.config.unet, 0.0
    for x, t in zip(steps, at, strict=True):
        x = check_pictures("x", x, config.in_channels, config.unit)
        if len(cond.context) not in (1, len(x)) or np.shape(t) not in ((), (len(x),)):
            raise SdjaxError(f"{len(cond.context)} prompts, t of shape {list(np.shape(t))}: one, or {len(x)} as x has")
        context = jnp.broadcast_to(cond.context, (len(x), *cond.context.shape[1:]))
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), len(x))
        total += np.asarray(cross_attention(sd.params["unet"], x, t, context, config, sd.dtype))
    return total / len(at)


@partial(jax.jit, static_argnames=("config", "dtype"))
def cross_attention(params: Params, x: Array, t: Array, context: Array, config: UNetConfig, dtype) -> Array:
    """UNet parameters, x [B, h, w, C], t [B], context [B, L, D] -> float32 [B, L, h, w], the mean over the layers."""
    with precise(dtype):
        _, found = UNet(config, dtype).apply({"params": params}, x, t, context, mutable=["maps"])
    b, h, w, _ = x.shape
    maps = []
    for weights in jax.tree.leaves(found["maps"]):  # each [B, T, L]: T positions of a layer, mean over its heads
        level = next(i for i in range(len(config.channels)) if (h >> i) * (w >> i) == weights.shape[1])
        grid = weights.reshape(b, h >> level, w >> level, -1)
        maps.append(jax.image.resize(grid, (b, h, w, grid.shape[3]), "linear"))
    return jnp.moveaxis(sum(maps) / len(maps), -1, 1)


def prompt_words(sd: StableDiffusion, prompts: str | Sequence[str], syntax: str = "a1111") -> list[list[str]]:
    """Returns the L tokens of each prompt as the tokenizer spells them, one for each map of `attention_maps`.

    "</w>" ends a word; special tokens are written "<|...|>". SdjaxError: prompts composed with AND.
    """
    own = [word + "</w>" for word, vectors in sd.embeddings.items() for _ in vectors]
    found = read_prompts(sd, prompts, syntax)
    if not found:
        return []
    tokens = stack(found, sd.config.text)
    if tokens.ids.shape[1] > 1:
        raise SdjaxError(f"prompts {prompts!r}: compose several with AND, ask for the words of one at a time")
    size = sd.config.text.vocab_size
    spell = lambda i: own[i - size] if i >= size else sd.tokenizer.convert_ids_to_tokens(i)
    return [[spell(i) for i in row.ravel().tolist()] for row in tokens.ids]


def attention_pictures(
    image: Image.Image, maps: Float[Arrays, "L h w"], words: Sequence[str], side: int = 192
) -> Image.Image:
    """Returns a sheet: `image`, then one cell for each word of the prompt that shows the word's map over the image.

    maps: [L, h, w], one picture's `attention_maps`. The maps of a word's tokens are added up, and each sum is scaled
        from its smallest value (dark blue) to its largest (yellow).
    words: the picture's `prompt_words`, [L].
    side: the longer side of a cell in pixels.
    SdjaxError: maps and words of different numbers.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or len(maps) != len(words):
        raise SdjaxError(f"maps of shape {list(maps.shape)}: [{len(words)}, h, w] expected for {len(words)} words")
    scale = side / max(image.size)
    size = tuple(max(1, round(edge * scale)) for edge in image.size)
    image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    cells, word, total = [captioned(image, "")], "", 0.0
    for token, attention in zip(words, maps, strict=True):
        if token.startswith("<|"):  # start, end, padding
            word, total = "", 0.0  # SD 2 pads with "!", which ends no word: dropped here too
            continue
        word, total = word + token.removesuffix("</w>"), total + attention
        if token.endswith("</w>"):
            cells.append(captioned(overlay(image, total), word))
            word, total = "", 0.0
    return contact_sheet(cells)


def overlay(image: Image.Image, attention: Float[Arrays, "h w"]) -> Image.Image:
    """Lays `attention` [h, w] over a grey copy of the image: dark blue where it is least, yellow where it is most."""
    attention = np.asarray(attention, np.float32)
    spread = np.ptp(attention)
    level = (attention - attention.min()) / spread if spread > 0 else np.zeros_like(attention)
    level = Image.fromarray(np.round(255 * level).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(level, np.float32)[..., None] / 255
    colour = (1 - heat) * np.float32([20, 20, 90]) + heat * np.float32([255, 230, 60])
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    return Image.fromarray(np.round(0.3 * grey + 0.7 * colour).astype(np.uint8))


def captioned(image: Image.Image, text: str) -> Image.Image:
    cell = Image.new("RGB", (image.width, image.height + 16), "white")
    cell.paste(image, (0, 0))
    ImageDraw.Draw(cell).text((2, image.height + 2), text, fill="black")
    return cell
