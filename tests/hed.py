"""Random narrow files of HED's layout."""

from pathlib import Path

import numpy as np

from sdjax.networks.hed.names import BLOCKS, hed_names

WIDTHS = (4, 5, 6, 7, 8)


def hed_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a file by their places."""
    rng, names, found = np.random.default_rng(seed), hed_names(), {}
    inside = 3
    for (layer, kind), name in names.items():
        if layer.startswith("block"):
            wide, side = WIDTHS[int(layer[6]) - 1], 3
            inside = 3 if layer == "block_1_conv_0" else inside
        else:
            wide, side = 1, 1
            inside = len(BLOCKS) if layer == "fuse" else WIDTHS[int(layer[-1]) - 1]
        shape = (side, side, inside, wide) if kind == "kernel" else (wide,)
        scale = {"block": np.sqrt(2), "side_": 0.02, "fuse": 1}[layer[:5]]
        found[name] = rng.normal(size=shape).astype(np.float32) * np.float32(scale / np.sqrt(np.prod(shape[:3])))
        if kind == "bias":
            inside = wide
    return found


def write_hed(path: Path, arrays: dict[str, np.ndarray] | None = None) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in (arrays or hed_arrays()).items():
            file.create_dataset(name, data=value)
    return path
