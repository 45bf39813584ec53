"""Training data: image folders with `metadata.jsonl`, read through grain with random access.

The batch of step n is a function of (source, seed, n) alone, so that the data's state is the step number.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image import to_rgb


@dataclass(frozen=True)
class ImageFolder:
    """Pictures and captions of a folder: `metadata.jsonl` holds {"file_name": ..., "text": ...} a line."""

    root: Path
    files: tuple[str, ...]
    texts: tuple[str, ...]
    size: int  # pixels a side that pictures are brought to

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"pixels": uint8 [size, size, 3], "index": i, "text": caption}"""
        return {"pixels": load_square(self.root / self.files[i], self.size), "index": i, "text": self.texts[i]}


def open_folder(folder: str | Path, size: int) -> ImageFolder:
    """Reads `folder/metadata.jsonl`; every broken line is named by its number."""
    root = Path(folder)
    table = root / "metadata.jsonl"
    if not table.is_file():
        raise SdjaxError(f"--data {folder}: no metadata.jsonl there; expected a folder of pictures with one "
                         '{"file_name": ..., "text": ...} a line')
    files, texts = [], []
    for number, line in enumerate(table.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
            file, text = record["file_name"], record["text"]
            if not (isinstance(file, str) and isinstance(text, str)):
                raise TypeError
            (file + text).encode("utf-8")  # JSON can spell half of a surrogate pair
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SdjaxError(f'{table} line {number}: expected {{"file_name": "...", "text": "..."}}') from None
        if not os.path.isfile(root / file):  # False too for a name that no file can have
            raise SdjaxError(f"{table} line {number}: no such picture: {file}")
        files.append(file)
        texts.append(text)
    if not files:
        raise SdjaxError(f"{table}: no pictures listed")
    return ImageFolder(root, tuple(files), tuple(texts), size)


def load_square(path: Path, size: int) -> np.ndarray:
    """A picture as RGB uint8 [size, size, 3]: `to_rgb`, centre crop to a square, LANCZOS."""
    try:
        with Image.open(path) as image:
            image = to_rgb(image)
    except Exception as error:  # decoders raise what they like
        raise SdjaxError(f"{path}: not a readable picture ({error})") from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image if side == size else image.resize((size, size), Image.Resampling.LANCZOS))


def batches(source, batch_size: int, seed: int | None, start: int = 0,
            collate: Callable | None = None) -> Iterator[Any]:
    """Endless shuffled batches from step `start` on, reshuffled every epoch, read ahead by a few threads.

    Seed None keeps the source's order.
    """
    import grain

    data = grain.MapDataset.source(source)
    data = data if seed is None else data.shuffle(seed=seed)
    data = data.repeat().batch(batch_size, drop_remainder=True, batch_fn=collate)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(data[start:].to_iter_dataset(read_options=options))


def to_pixels(pictures: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1.0
