"""Writes a model in another form: sdjax convert SOURCE TARGET [--dtype float16]

TARGET is a name in .safetensors for a single file in CompVis' (Stability's) layout, or a folder's in diffusers'.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sdjax.commands.loras import add_loras
from sdjax.errors import SdjaxError, loading, prefixed


@dataclass(frozen=True)
class Options:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """"emoji", a diffusers folder, a .safetensors or .ckpt file, or a hub id."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """A name in .safetensors, or a folder that there is not yet."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Round the parameters to it; those of the source if left out."""
    config: str | None = None
    """The name of a single file's configuration, as cin256-v2, where its tensors do not tell."""
    unet: Path | None = None
    """A file, or a folder, whose UNet takes the place of the model's."""
    vae: Path | None = None
    """The same for the VAE."""
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE:UNET:TE")] = ()
    """A LoRA to merge, with the UNet's weight (1) and the text towers' (the UNet's); once a file."""
    prefer_ema: bool = False
    """Take the EMA copy of the UNet if a single file holds both."""


def main(options: Options) -> None:
    """Write a model in the other form: a folder as a single file, or a single file as a folder."""
    if options.target.exists():
        raise SdjaxError(f"TARGET {options.target}: is there already; name a new one, or move it away")
    import sdjax

    with loading(model="SOURCE "):
        parts = {"config": options.config, "unet": options.unet, "vae": options.vae}
        sd = sdjax.load(options.source, prefer_ema=options.prefer_ema, **parts)
    with prefixed("--lora "):
        sd = add_loras(sd, options.lora)
    with prefixed("TARGET "):
        sdjax.save(sd, options.target, options.dtype)
    print(options.target)
