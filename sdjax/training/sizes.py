"""What SDXL is told of an example's picture: the file's size, where it was cropped, and the size it is trained at.

arXiv 2307.01952, section 2.2. The numbers follow from the file's size and the view alone; no picture is decoded.
"""

from pathlib import Path

import numpy as np

from sdjax.conditioning.sizes import takes_score, takes_sizes
from sdjax.data.buckets import picture_sizes
from sdjax.data.picture import crop_box
from sdjax.data.source import Pictures
from sdjax.families.config import Config
from sdjax.training.beside import Given, each_view


def is_base(config: Config) -> bool:
    """Does a model take the pooled text of a second tower and six sizes, as SDXL's base does and its refiner does
    not?"""
    return takes_sizes(config) and config.text_2 is not None and not takes_score(config)


def bucket_multiple(config: Config) -> int:
    """Returns the number of pixels that the sides of buckets are multiples of: the model's own, but 64 for SDXL.

    Its networks need multiples of 32; its authors trained it on multiples of 64 (appendix I), which are half as many
    shapes to compile for.
    """
    own = config.multiple
    return 2 * own if is_base(config) and config.size % (2 * own) == 0 else own


def sizes_given(source: Pictures, folder: Path, views: int) -> Given:
    """Returns a function of rows that gives their six numbers, float64 [B, 6], see `view_sizes`.

    folder: of all caches; it keeps the sizes of the files for the next start.
    """
    measured = picture_sizes(source.listing, set(source.known), source.set_aside, folder)

    def sizes(i: int, row: int, epoch: int, group: int) -> np.ndarray:
        height, width = map(int, measured[i])
        return view_sizes((height, width), source.shapes[group], *source.draw(row, epoch))

    return each_view(sizes, views)


def view_sizes(
    size: tuple[int, int], shape: tuple[int, int], place: tuple[float, float] = (0.5, 0.5), mirrored: bool = False
) -> np.ndarray:
    """Returns (height, width) of a picture, (top, left) of its crop and (height, width) of the crop, float64 [6].

    size, shape, place: see `fit` in data/picture.py.
    Top and left count whole pixels of the picture as it is after resizing, as if it were resized first and cropped
    then. Of a mirrored picture they are those of the mirrored one: left is what is missing at the left of what the
    model sees.
    """
    left, top, right, bottom = crop_box(size, shape, place)
    if mirrored:
        left, right = size[1] - right, size[1] - left
    down, across = shape[0] / (bottom - top), shape[1] / (right - left)
    return np.array([*size, round(top * down), round(left * across), *shape], np.float64)
