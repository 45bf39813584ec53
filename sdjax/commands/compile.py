"""Writes a generation program to a file: python sample/compile.py --model emoji --steps 20 --out emoji.sdjax

`sdjax.load_program(FILE)(sd, "a red apple", seed=7)` runs it without tracing, on the platforms that it was made for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdjax.commands.command_line import model_flag
from sdjax.errors import flags_of, loading


@dataclass(frozen=True)
class Options:
    out: Path
    """The file to write."""
    model: str = "emoji"
    """"emoji", a diffusers folder, a .safetensors or .ckpt file, or a hub id."""
    config: str | None = None
    """The name of a single file's configuration, as cin256-v2, where its tensors do not tell."""
    unet: Path | None = None
    """A file, or a folder, whose UNet takes the place of the model's."""
    vae: Path | None = None
    """The same for the VAE."""
    steps: int = 50
    """1 to 1000; up to the next power of two can be run."""
    num_images: int = 1
    """Pictures that are made at once."""
    height: int | None = None
    """Pixels; the model's own size if left out."""
    width: int | None = None
    """Pixels; the model's own size if left out."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    platforms: tuple[str, ...] = ("cpu",)
    """Some of cpu, cuda, rocm and tpu."""


def main(options: Options) -> None:
    """Export a generation program."""
    import sdjax

    with loading():
        parts = {"config": options.config, "unet": options.unet, "vae": options.vae}
        sd = sdjax.load(options.model, dtype=options.dtype, **parts)
    with model_flag(), flags_of(("steps", "num_images", "height", "width", "platforms")):
        sdjax.save_program(
            sd, options.out, options.steps, options.num_images, options.height, options.width, options.platforms
        )
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB for {', '.join(options.platforms)}")
