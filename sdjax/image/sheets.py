"""Sheets: several pictures in one."""

import math
from collections.abc import Callable, Sequence

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


def captioned_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int | None = None,
    gap: int = 8,
    font_size: int = 11,
) -> Image.Image:
    """Returns a white sheet with the images row by row and each one's caption under it.

    columns: how many images a row has; None makes about as many rows as columns.
    gap: pixels between the cells, which are at least CAPTION pixels wide. A caption takes at most three lines.
    SdjaxError: there are no images, or their number is another.
    """
    if len(images) != len(captions) or not images:
        raise SdjaxError(f"images: {len(images)} for {len(captions)} captions")
    font, draw = ImageFont.load_default(font_size), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width, height = max(CAPTION, *(image.width for image in images)), max(image.height for image in images)
    texts = [wrapped(caption, width, lambda text: draw.textlength(text, font=font)) for caption in captions]
    below = int(draw.multiline_textbbox((0, 0), "Ag\n" * 2 + "Ag", font=font)[3]) + 4
    cells = []
    for image, text in zip(images, texts, strict=True):
        cell = Image.new("RGB", (width, height + below), "white")
        cell.paste(image, ((width - image.width) // 2, height - image.height))
        ImageDraw.Draw(cell).multiline_text((0, height + 4), text, fill="black", font=font)
        cells.append(cell)
    return contact_sheet(cells, columns, gap)


CAPTION = 128  # pixels: the least width of a captioned cell


def wrapped(text: str, width: float, length: Callable[[str], float], most: int = 3) -> str:
    """Returns a text in lines of at most `width`, as length(line) measures it; "..." stands for what does not fit."""
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    while any(length(line) > width for line in lines):
        lines = [line if length(line) <= width else f"{line.removesuffix('...').rstrip()[:-1]}..." for line in lines]
    return "\n".join(lines)


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
