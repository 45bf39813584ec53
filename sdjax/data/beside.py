"""The file beside each picture that a column of metadata.jsonl names: a map of ids, a mask, depth, a small picture, a
control.

It is cropped and mirrored as its picture is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sdjax.data.picture import Unreadable, decode, decode_depth, decode_map, open_file
from sdjax.data.source import Pictures

#: How a file of each kind is read, as a Pillow image. Raises Unreadable.
READERS: dict[str, Callable[[Path], Image.Image]] = {
    "map": lambda path: decode_map(open_file(path)),
    "mask": lambda path: decode(open_file(path), under="black").convert("L"),
    "depth": lambda path: Image.fromarray(decode_depth(path)),
    "lowres": lambda path: decode(open_file(path)),
    "control": lambda path: decode(open_file(path), under="black"),
}

ANY_SIZE = ("lowres", "control")  # kinds whose files may have another size than the picture


@dataclass
class FilesBeside:
    """The files of one kind beside the pictures of a source.

    below: ids of maps must be below it; None: any.
    """

    source: Pictures
    kind: str  # of READERS
    below: int | None = None

    def has(self, i: int) -> bool:
        """Has picture i a file? Where the column is optional it may have none."""
        return self.source.given[i] is not None

    def read(self, i: int, size: tuple[int, int] | None = None) -> Image.Image | None:
        """Returns the file of picture i, or None without one. size: (width, height) of the picture.

        Unreadable: it cannot be read, has another size (ANY_SIZE may), or an id that is not below `below`.
        """
        if not self.has(i):
            return None
        name = f"its {self.kind} {self.source.given[i]}"
        try:
            found = READERS[self.kind](self.source.listing.root / self.source.given[i])
        except Unreadable as error:
            raise Unreadable(f"{name}: {error}") from None
        if size is not None and found.size != size and self.kind not in ANY_SIZE:
            raise Unreadable(f"{name} has {found.width} x {found.height} pixels, the picture {size[0]} x {size[1]}")
        low, high = found.getextrema() if self.kind == "map" else (0, 0)
        if self.below and not 0 <= low <= high < self.below:
            raise Unreadable(f"{name} has ids {low} to {high}, 0 to {self.below - 1} expected")
        return found

    def view(self, i: int, row: int, epoch: int, group: int, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Returns the file of picture i as the view of `row` crops and mirrors its picture, [height, width(, 3)].

        i: the picture; it differs from `row` where it stands in for a bad one.
        shape: (height, width) to resize to, with LANCZOS those of ANY_SIZE, by the nearest pixels what else; None: as
            it is.
        """
        found, (box, mirrored) = self.read(i), self.source.framing(i, row, epoch, group)
        sides = found.size * 2
        found = found.crop([round(share * side) for share, side in zip(box, sides, strict=True)])
        if shape is not None and found.size != shape[::-1]:
            how = Image.Resampling.LANCZOS if self.kind in ANY_SIZE else Image.Resampling.NEAREST
            found = found.resize(shape[::-1], how)
        values = np.asarray(found)
        return values[:, ::-1] if mirrored else values

    def largest_id(self) -> int:
        """Returns the largest id of all maps that can be read. Rows whose map cannot are set aside."""
        largest = 0
        for i in (i for i in range(len(self.source)) if i not in self.source.known):
            try:
                largest = max(largest, self.read(i).getextrema()[1])
            except Unreadable as error:
                self.source.set_aside(i, str(error))
        return largest
