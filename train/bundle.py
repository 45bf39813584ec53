"""Makes a small folder to ship out of a trained one: float16 weights, CLIP's image tower beside them.

    python train/bundle.py --model runs/unet/export --clip runs/clip/export/clip --out sdjax/pretrained/emoji
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

import sdjax
from sdjax import cli


@dataclass(frozen=True)
class Options:
    model: Path
    """A model folder, such as the export of train/train_diffusion.py."""
    clip: Path
    """The clip folder that train/train_clip.py exported."""
    out: Path
    """Where to write; an older model folder there is replaced, its README.md and LICENSES.txt are kept."""


def main(options: Options) -> None:
    """Write a model in float16, with the CLIP image tower that belongs to it."""
    half = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), tree)
    sd = sdjax.load(options.model)
    vision, clip = sdjax.load_clip(options.clip)
    papers = {name: path.read_bytes() for name in ("README.md", "LICENSES.txt")
              if (path := options.out / name).is_file()}
    for name in papers:  # sdjax.save replaces an older model folder, or fills an empty one
        (options.out / name).unlink()
    try:
        sdjax.save(replace(sd, params=half(sd.params)), options.out)
        sdjax.save_clip(half(clip), vision, options.out / "clip")
    finally:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, content in papers.items():
            (options.out / name).write_bytes(content)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, Options)
