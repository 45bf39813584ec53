"""Writes PNG files that hold the settings they were made with."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.files import written_whole


def save_png(image: Image.Image, path: str | Path, parameters: str | None = None) -> Path:
    """Writes a PNG file, whole or not at all, and returns its path. `parameters` goes into its text chunk
    "parameters"."""
    path, info = Path(path), PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)  # PIL writes iTXt when Latin-1 does not hold it
    with written_whole(path) as scratch:
        image.save(scratch, "PNG", pnginfo=info)
    return path
