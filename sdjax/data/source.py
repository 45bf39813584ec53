"""Pictures and captions by row. A picture that cannot be read is set aside, and the next readable one stands in for it.

This rule depends on the data alone, so that every process and every restart gets the same batches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.data.bad import BadData
from sdjax.data.buckets import bucket_shapes, nearest_shapes, picture_sizes
from sdjax.data.columns import Column
from sdjax.data.listing import Listing, list_data
from sdjax.data.picture import CROPS, Unreadable, crop_box, decode, fit, measure
from sdjax.errors import SdjaxError, log


class Beside(Protocol):
    """The files beside pictures; see data/beside.py."""

    def read(self, i: int, size: tuple[int, int]) -> Any:
        """Reads the file of picture i, which has `size`. Unreadable: it cannot be used."""


class Pictures:
    """Pictures with random access: pictures[i] is {"pixels": uint8 [height, width, 3], "index": i, "text": caption}.

    files, texts: the names and captions of all rows, bad ones too.
    shapes, groups: all shapes (height, width), and the rows of each.
    known: {row: reason} of the bad pictures found so far.
    """

    def __init__(
        self,
        listing: Listing,
        shape: tuple[int, int],
        bad: BadData,
        crop: str = "center",
        flip: bool = False,
        seed: int = 0,
    ):
        if crop not in CROPS:
            raise SdjaxError(f"crop {crop}: expected {' or '.join(CROPS)}")
        self.listing, self.bad, self.crop, self.flip, self.seed = listing, bad, crop, flip, seed
        self.files, self.texts, self.given = listing.files, listing.texts, listing.given
        self.sizes: dict[int, tuple[int, int]] = {}  # (height, width) of pictures that `framing` asked for
        self.beside: Beside | None = None  # set: `view` reads the file beside each picture too, to know that it can be
        self.known: dict[int, str] = {}
        for row, reason in listing.known.items():
            self.set_aside(row, reason)
        self.shapes: list[tuple[int, int]] = [shape]
        self.groups: list[np.ndarray | range] = [range(len(listing))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.view(row)

    def bucket(self, shapes: Sequence[tuple[int, int]], sizes: np.ndarray) -> None:
        """Gives every picture the nearest of `shapes` and drops the shapes that have no picture. sizes: [N, 2]."""
        nearest = nearest_shapes(sizes, list(shapes))
        members = [np.flatnonzero(nearest == k) for k in range(len(shapes))]
        self.shapes = [shape for shape, rows in zip(shapes, members, strict=True) if len(rows)]
        self.groups = [rows for rows in members if len(rows)]

    def repeated(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns rows of pictures, each as often as an epoch has it: once, or as its folder's name says."""
        rows = np.asarray(rows)
        return np.repeat(rows, np.asarray(self.listing.repeats)[rows]) if self.listing.repeats else rows

    def set_aside(self, row: int, reason: str) -> None:
        """Marks a row as bad. SdjaxError if there are too many now."""
        self.bad.add(self.listing.paths[row], reason)
        self.known[row] = reason

    def view(self, row: int, epoch: int = 0, group: int = 0) -> dict[str, Any]:
        """Returns a row as epoch `epoch` crops and flips it, in the shape of `group`.

        Random crops and flips depend on (seed, epoch, row). If the row is bad, all of the result is the stand-in's.
        SdjaxError: too many pictures are bad.
        """
        self.bad.check()
        place, mirrored = self.draw(row, epoch)
        for i in ((row + k) % len(self) for k in range(len(self))):
            if i in self.known:
                continue
            try:
                image = decode(self.listing.open(i))
                pixels = fit(image, self.shapes[group], place, mirrored)
                if self.beside is not None:
                    self.beside.read(i, image.size)
            except Unreadable as error:
                self.set_aside(i, str(error))
                continue
            return {"pixels": pixels, "index": i, "text": self.texts[i]}
        raise SdjaxError(f"none of the {len(self)} pictures can be read")

    def draw(self, row: int, epoch: int) -> tuple[tuple[float, float], bool]:
        """Returns where epoch `epoch` crops a row, as `fit` takes it, and whether it mirrors it."""
        draw = np.random.default_rng((self.seed, epoch, row)).random(3) if self.flip or self.crop == "random" else None
        place = (draw[0], draw[1]) if self.crop == "random" else (0.5, 0.5)
        return place, bool(self.flip and draw[2] < 0.5)

    def framing(self, i: int, row: int, epoch: int, group: int) -> tuple[tuple[float, float, float, float], bool]:
        """Returns the crop (x0, y0, x1, y1), in [0, 1] of picture i, and whether the view of `row` mirrors it.

        i: the picture; it differs from `row` where it stands in for a bad one.
        """
        if i not in self.sizes:
            self.sizes[i] = measure(self.listing.open(i))
        place, mirrored = self.draw(row, epoch)
        height, width = self.sizes[i]
        left, top, right, bottom = crop_box((height, width), self.shapes[group], place)
        return (left / width, top / height, right / width, bottom / height), mirrored

    @property
    def digest(self) -> str:
        """A text that changes with everything that pixels depend on, as far as is known without reading pictures."""
        return f"{self.listing.digest} {self.crop} {self.flip} {self.seed if self.flip or self.crop != 'center' else 0}"


def open_data(
    data: Any,
    size: int,
    max_bad: float = 0.0,
    run: Path | None = None,
    crop: str = "center",
    flip: bool = False,
    buckets: int | None = None,
    seed: int = 0,
    process: int = 0,
    column: Column | None = None,
    captions: bool = True,
) -> Pictures:
    """Opens a data set.

    data: see `listing.list_data`.
    size: the side of square crops in pixels.
    max_bad: share of the pictures that may be bad; with more SdjaxError is raised.
    run: the run's folder. Bad pictures are named in run/bad_data.jsonl (by process i > 0 in bad_data-i.jsonl), and what
        takes long to compute is kept in run/cache. None keeps nothing.
    crop: "center" or "random": where the largest part with the right aspect ratio is cut out.
    flip: mirror half of the views.
    buckets: None makes every picture a square; otherwise each gets the nearest of the shapes of about size^2 pixels
        whose sides are multiples of this number.
    seed: of random crops and flips.
    process: the number of this process.
    column, captions: see `listing.list_data`.
    """
    if not is_whole(size, 1):
        raise SdjaxError(f"size {size!r}: a whole number of pixels from 1 on")
    if not is_number(max_bad, 0, 1):
        raise SdjaxError(f"max_bad {max_bad!r}: a share in [0, 1]")
    cache = Path(run) / "cache" if run else None
    listing = list_data(data, cache / "index" if cache else None, column, captions)
    if without := captions and sum(not text for i, text in enumerate(listing.texts) if i not in listing.known):
        where, count = data if isinstance(data, (str, Path)) else "the data set", len(listing)
        log.warning("data %s: %d of %d pictures have no caption", where, without, count)
    name = f"bad_data-{process}.jsonl" if process else "bad_data.jsonl"
    bad = BadData(len(listing), max_bad, Path(run) / name if run else None)
    pictures = Pictures(listing, (size, size), bad, crop, flip, seed)
    if buckets:
        shapes = bucket_shapes(size, buckets)
        sizes = picture_sizes(listing, set(pictures.known), pictures.set_aside, Path(run) / "cache" if run else None)
        pictures.bucket(shapes, sizes)
    return pictures
