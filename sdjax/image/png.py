"""Writes PNG files that hold the settings they were made with."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.files import written_whole


def png_text(parameters: str | None) -> PngInfo:
    """Returns a PNG's text chunks: `parameters` under that name, or none."""
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)  # PIL writes iTXt when Latin-1 does not hold it
    return info


def save_png(image: Image.Image, path: str | Path, parameters: str | None = None) -> Path:
    """Writes a PNG file, whole or not at all, and returns its path. `parameters` goes into its text chunk
    "parameters"."""
    path = Path(path)
    with written_whole(path) as scratch:
        image.save(scratch, "PNG", pnginfo=png_text(parameters))
    return path
