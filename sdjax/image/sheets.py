"""Several pictures on one sheet."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sdjax.errors import SdjaxError


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """The images row by row on white, about as many rows as columns, `gap` pixels apart. Cells fit the largest."""
    if not images:
        raise SdjaxError("images: a contact sheet needs at least one")
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (max(image.size[i] for image in images) + gap for i in (0, 1))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (gap + i % columns * width, gap + i // columns * height))
    return sheet


def labelled_sheet(
    images: Sequence[Image.Image], rows: Sequence[str], columns: Sequence[str], gap: int = 4, font_size: int = 11
) -> Image.Image:
    """len(rows) x len(columns) images on white, row by row, with a text above each column and before each row."""
    if len(images) != len(rows) * len(columns) or not images:
        raise SdjaxError(f"images: {len(images)} for {len(rows)} rows and {len(columns)} columns")
    font, draw = ImageFont.load_default(font_size), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    size = lambda text: draw.multiline_textbbox((0, 0), text, font=font)[2:] if text else (0, 0)
    extent = lambda texts, axis: int(max(size(text)[axis] for text in texts))
    width = max(max(image.width for image in images), extent(columns, 0)) + gap
    height = max(max(image.height for image in images), extent(rows, 1)) + gap
    left, top = extent(rows, 0) + 2 * gap, extent(columns, 1) + 2 * gap
    sheet = Image.new("RGB", (left + len(columns) * width, top + len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(columns):
        draw.multiline_text((left + i * width, gap), text, fill="black", font=font)
    for i, text in enumerate(rows):
        draw.multiline_text((gap, top + i * height), text, fill="black", font=font)
    for i, image in enumerate(images):
        sheet.paste(image, (left + i % len(columns) * width, top + i // len(columns) * height))
    return sheet
