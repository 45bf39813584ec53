"""The options of `sdjax benchmark`, and the inputs that it gives to both sides."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

PARTS, PROMPT = ("unet", "decode", "image"), "a red apple"


@dataclass(frozen=True)
class Options:
    model: str = "SD15"
    """A preset (SD15, SD21, ...) with random parameters, a diffusers folder, or emoji."""
    sizes: tuple[int, ...] = ()
    """Pixels a side; the model's own if left out."""
    batch_size: int = 1
    """Pictures at once; the UNet is called with twice as many, as guidance needs."""
    steps: int = 20
    """Of a whole image, ddim."""
    parts: tuple[str, ...] = PARTS
    """What is measured: unet (sdjax.predict), decode (sdjax.decode), image (sdjax.txt2img)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation; with random parameters theirs too."""
    peer: tuple[Literal["eager", "compile", "graphs", "none"], ...] = ("eager",)
    """diffusers as it is, through torch.compile, through torch.compile with CUDA graphs, or not at all."""
    runs: int = 5
    """Turns that each takes after a first one, which compiles."""
    aot_tpu: str | None = None
    """v5e, v5p or v6e: only compile, for one such chip."""
    cache: bool = False
    """Take compiled programs from where other scripts keep them; then compile times are not those of a first run."""


# ---- inputs


def inputs(config, options: Options, size: int) -> dict[str, np.ndarray]:
    """Returns the random inputs of the parts, the same for both sides, for pictures of `size` pixels a side."""
    batch, side = options.batch_size, size // config.vae.factor
    draw = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return {
        "latents": draw(0, batch, side, side, config.vae.latent_channels),
        "x": draw(1, 2 * batch, side, side, config.unet.in_channels),
        "t": np.full(2 * batch, 500.0, np.float32),
        "context": draw(2, 2 * batch, config.text.length, config.unet.context_dim),
        "vector": draw(3, 2 * batch, config.unet.vector or 1),
    }
