"""Makes a small model folder to ship from a trained one: weights in float16, with CLIP's image tower beside them.

python train/bundle.py --model runs/unet/export --clip runs/clip/export/clip --out sdjax/pretrained/emoji
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sdjax
from sdjax.commands import command_line as cli
from sdjax.weights.convert import cast_params


@dataclass(frozen=True)
class Options:
    model: Path
    """A model folder, such as the export of train/train_diffusion.py."""
    clip: Path
    """The clip folder that train/train_clip.py exported."""
    out: Path
    """Where to write; an older model folder there is replaced, what else lies in it stays."""


def main(options: Options) -> None:
    """Write a model in float16, with the CLIP image tower that belongs to it."""
    sd = sdjax.load(options.model)
    vision, clip = sdjax.load_clip(options.clip)
    clip = cast_params(clip, np.float16)  # refuses values too large for float16 before anything is written
    sdjax.save(sd, options.out, dtype="float16")
    sdjax.save_clip(clip, vision, options.out / "clip")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, Options)
