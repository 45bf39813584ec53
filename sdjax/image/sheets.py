"""Sheets: several pictures in one."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sdjax.errors import SdjaxError


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Returns a white sheet with the images row by row. All cells have the size of the largest image.

    columns: how many images a row has; None makes about as many rows as columns.
    gap: pixels between the images.
    SdjaxError: there are no images.
    """
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
    """Returns a white sheet with len(rows) x len(columns) images, row by row.

    rows: the text before each row.
    columns: the text above each column.
    gap: pixels between the images.
    SdjaxError: there are no images, or their number is another.
    """
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
