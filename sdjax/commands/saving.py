"""The files of `sdjax generate`: pictures that are read, numbered pictures and sheets that are written."""

import re
from pathlib import Path

from sdjax.errors import SdjaxError


def read_picture(name: str, path: Path | None):
    """Reads the picture of an option as RGB, a mask as it is, or returns None."""
    from sdjax.data.picture import Unreadable, decode, decode_as_is, open_file

    try:
        return path and (decode_as_is if name == "mask" else decode)(open_file(path))
    except Unreadable as error:
        raise SdjaxError(f"--{name.replace('_', '-')} {path}: {error}") from None


def save_sheet(sheet, folder: Path, text: str) -> Path:
    """Saves a sheet, with its settings, as sheet.png, or sheet-1.png and so on where there are others."""
    from sdjax.image.png import save_png

    names = ("sheet.png", *(f"sheet-{n}.png" for n in range(1, 10**6)))
    return save_png(sheet, next(path for name in names if not (path := folder / name).exists()), text)


def save_next(image, folder: Path, seed: int, text: str) -> Path:
    """Saves a picture under the number after the highest one in the folder, and returns its path.

    Other runs may draw into the same folder, so an empty file reserves the name until the picture replaces it.
    """
    from sdjax.image.png import save_png

    while True:
        numbers = (int(m[1]) + 1 for path in folder.iterdir() if (m := re.match(r"(\d{5,})-", path.name)))
        path = folder / f"{max(numbers, default=0):05d}-seed{seed}.png"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            return save_png(image, path, text)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
