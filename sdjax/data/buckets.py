"""Aspect-ratio buckets: every picture is cropped to the nearest of a few shapes of about the same area, and a batch
holds pictures of one shape (NovelAI, "Improvements on Stable Diffusion", 2022)."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sdjax.data.listing import Listing
from sdjax.data.picture import Unreadable, measure
from sdjax.errors import SdjaxError
from sdjax.files import written_whole


def bucket_shapes(size: int, multiple: int) -> list[tuple[int, int]]:
    """Returns (height, width) of all buckets; the square comes first.

    Sides are multiples of `multiple` from size / 2 to 2 size. For each side the other one is the longest that keeps the
    area within size^2. SdjaxError: size is no multiple of `multiple`.
    """
    if size % multiple:
        raise SdjaxError(f"size {size}: buckets need a multiple of {multiple}")
    sides = range(-(-size // 2 // multiple) * multiple, 2 * size + 1, multiple)
    pairs = ((side, min(size * size // side // multiple * multiple, sides[-1])) for side in sides)
    shapes = {pair for a, b in pairs for pair in ((a, b), (b, a)) if b >= sides[0]}
    return sorted(shapes, key=lambda shape: (shape != (size, size), shape))


def nearest_shapes(sizes: np.ndarray, shapes: list[tuple[int, int]]) -> np.ndarray:
    """[N, 2] heights and widths -> [N] index of the shape with the nearest log aspect ratio; 0 for an unknown size."""
    known = (sizes > 0).all(1)
    ratio = np.log(np.where(known, sizes[:, 0], 1)) - np.log(np.where(known, sizes[:, 1], 1))
    offered = np.array([np.log(h / w) for h, w in shapes])
    return np.where(known, np.abs(ratio[:, None] - offered).argmin(1), 0)


def picture_sizes(
    listing: Listing, known: set[int], report: Callable[[int, str], None], folder: Path | None = None
) -> np.ndarray:
    """Returns the height and width of all pictures, int32 [N, 2], after EXIF's rotation; 0 for unreadable ones.

    The sizes are read from the pictures' heads once.
    known: rows that are bad already; they are not read.
    report: is called with (row, reason) for a picture that cannot be read.
    folder: keeps the sizes for the next start; None keeps none.
    """
    from tqdm import tqdm

    kept = folder / f"sizes-{listing.digest[:16]}.npy" if folder else None
    if kept and kept.is_file():
        try:
            sizes = np.load(kept)
            if sizes.shape == (len(listing), 2):
                return sizes
        except (ValueError, OSError, EOFError):
            pass  # the file was cut off: read the sizes again

    def size(i: int) -> tuple[int, int]:
        if i in known:
            return 0, 0
        try:
            return measure(listing.open(i))
        except Unreadable as error:
            report(i, str(error))
            return 0, 0

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        rows = list(tqdm(pool.map(size, range(len(listing))), total=len(listing), desc="picture sizes"))
    sizes = np.array(rows, np.int32)
    if kept:
        with written_whole(kept) as scratch, open(scratch, "wb") as file:  # given a name, np.save would add a suffix
            np.save(file, sizes)
    return sizes
