"""Writes tests/data/watermark.json with the package invisible-watermark, whose answers test_watermark.py expects.

    pip download --no-deps invisible-watermark==0.2.0 && unzip invisible_watermark-0.2.0-py3-none-any.whl
    pip install numpy PyWavelets opencv-python-headless
    python tests/image/watermark_reference.py

in an environment of its own: the package wants torch, but only for a method that is left out here.
"""

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

FILE = Path(__file__).parents[1] / "data" / "watermark.json"
CONTENTS = ("StableDiffusionV1", "SDV2")


def pictures() -> dict[str, np.ndarray]:
    """RGB bytes from whole numbers alone, the same everywhere."""
    y, x = np.mgrid[:512, :512]
    noise = (x * 2654435761 + y * 40503 + (x * y) * 2246822519 >> 13) % 256
    slopes = np.stack([96 + x // 8, 190 - (x + y) // 12, 90 + (x * x + y * y) // 8000], -1)
    grey, flat = np.full((512, 512, 3), 128), np.zeros((512, 512, 3), np.int64)
    flat[:256], flat[256:, :256] = (0, 0, 255), (255, 0, 0)
    whole = {
        "slopes": slopes + (noise % 5)[..., None],
        "odd sides": slopes[:259, :263] + (noise % 9)[:259, :263, None],
        "noise": np.stack([noise, noise[::-1], noise.T], -1),
        "grey": grey,
        "flat": flat,
    }
    return {name: picture.astype(np.uint8) for name, picture in whole.items()}


def main() -> None:
    sys.path.insert(0, ".")
    sys.modules["imwatermark.rivaGan"] = ModuleType("imwatermark.rivaGan")  # the part that needs torch
    sys.modules["imwatermark.rivaGan"].RivaWatermark = None
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    found = {}
    for name, rgb in pictures().items():
        for content in CONTENTS:
            encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bytes", 8 * len(content))
            encoder.set_watermark("bytes", content.encode())
            marked = encoder.encode(np.ascontiguousarray(rgb[..., ::-1]), "dwtDct")
            digest = hashlib.sha256(np.ascontiguousarray(marked[..., ::-1]).tobytes()).hexdigest()
            found[f"{name}, {content}"] = {"sha256": digest, "decoded": decoder.decode(marked, "dwtDct").hex()}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
