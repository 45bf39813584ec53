"""Measures how well a model that was trained on the emoji data of --conditions follows what it is asked for.

    python train/measure_conditions.py --model RUN/export --data data/conditions

A model of classes: the share of pictures whose border has the colour of their class. A model of layouts: the share
whose thing is centred within a tenth of the side from the box's centre, and the same with the boxes shuffled. A model
of maps: the share of pixels that are thing where the map says thing, and background where it says background.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import sdjax
from sdjax.commands.command_line import run
from sdjax.errors import SdjaxError
from sdjax.image.sheets import contact_sheet

BORDER, APART = 3, 40  # pixels of a picture's border; RGB distance from the background that makes a thing


@dataclass(frozen=True)
class Options:
    model: Path
    """A model that train_diffusion.py --condition exported."""
    data: Path
    """The data that it was trained on."""
    pictures: int = 60
    """How many pictures are drawn."""
    steps: int = 30
    seed: int = 1000
    sheet: Path | None = None
    """Where a sheet of the first pictures is written: with their boxes, or each behind its map."""


def border_of(picture: np.ndarray) -> np.ndarray:
    """Returns the median colour of the border of uint8 [H, W, 3]."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(picture[~inside], axis=0)


def thing_of(picture: np.ndarray) -> np.ndarray:
    """Returns where a picture differs from its border's colour, bool [H, W]."""
    return np.linalg.norm(picture - border_of(picture), axis=-1) > APART


def centre_of(inside: np.ndarray) -> np.ndarray:
    """Returns the centre (x, y), in [0, 1], of the box around what is inside: 2% of its rows and columns may stray."""
    found = []
    for axis in (0, 1):
        share = np.cumsum(inside.sum(axis)) / max(inside.sum(), 1)
        first, last = np.searchsorted(share, (0.02, 0.98))
        found.append((first + last + 1) / 2 / inside.shape[1 - axis])
    return np.array(found)


def boxed(picture: Image.Image, box: list[float]) -> Image.Image:
    """Returns a picture, four times as large, with a box (x0, y0, x1, y1) drawn around a part of it."""
    large = picture.resize([4 * side for side in picture.size], Image.Resampling.NEAREST)
    ImageDraw.Draw(large).rectangle([share * large.width for share in box], outline="magenta", width=5)
    return large.resize(picture.size, Image.Resampling.LANCZOS)


def main(options: Options) -> None:
    """Measure a model of classes, layouts or maps."""
    sd = sdjax.load(options.model)
    try:
        rows = [json.loads(line) for line in (options.data / "metadata.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise SdjaxError(f"--data {options.data}: no readable metadata.jsonl ({error})") from None
    rng = np.random.default_rng(options.seed)
    chosen = [rows[i] for i in rng.permutation(len(rows))[: options.pictures]]
    draw = lambda cond: sdjax.txt2img(sd, cond, steps=options.steps, seed=options.seed)
    if sd.config.classes:
        count = sd.config.classes - sd.config.null
        asked = np.arange(options.pictures) % count
        pictures = draw(sdjax.encode_classes(sd, asked.tolist()))
        colours = [
            np.median([border_of(np.asarray(Image.open(options.data / row["file_name"]))) for row in few[:40]], axis=0)
            for few in ([row for row in rows if row["class"] == label] for label in range(count))
        ]
        found = [np.argmin([np.linalg.norm(border_of(np.asarray(p)) - c) for c in colours]) for p in pictures]
        print(f"right background in {np.mean(asked == found):.1%} of {len(pictures)} pictures")
    elif sd.config.layout:
        pictures = draw(sdjax.encode_layout(sd, [row["boxes"] for row in chosen]))
        boxes = np.array([row["boxes"][0][1:] for row in chosen])
        asked = (boxes[:, :2] + boxes[:, 2:]) / 2
        found = np.array([centre_of(thing_of(np.asarray(picture, np.float32))) for picture in pictures])
        near = lambda asked: np.mean(np.abs(found - asked).max(-1) <= 0.1)
        print(f"centre within a tenth of the side in {near(asked):.1%} of {len(pictures)} pictures")
        print(f"with the boxes shuffled in {near(np.roll(asked, 1, 0)):.1%}")
        pictures = [boxed(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
    elif sd.config.map:
        maps = np.stack([np.asarray(Image.open(options.data / row["map_file_name"])) for row in chosen])
        pictures = draw(sdjax.encode_map(sd, maps))
        inside = np.stack([thing_of(np.asarray(picture, np.float32)) for picture in pictures])
        print(f"{np.mean(inside == (maps > 0)):.1%} of the pixels of {len(pictures)} pictures are of the right side")
        print(f"with the maps shuffled {np.mean(inside == (np.roll(maps, 1, 0) > 0)):.1%}")
        shown = [Image.fromarray(np.uint8(ids * (255 // sd.config.map.classes))).convert("RGB") for ids in maps]
        pictures = [one for pair in zip(shown, pictures, strict=True) for one in pair]
    else:
        raise SdjaxError(f"--model {options.model}: takes no classes, layouts or maps")
    if options.sheet:
        contact_sheet(pictures[:64]).save(options.sheet)


if __name__ == "__main__":
    run(main, Options)
