"""What SDXL is told of a picture beside the text: sizes, a crop and, of its refiner, a score, as numbers."""

from typing import Any

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.errors import SdjaxError, in_short
from sdjax.families.config import Config
from sdjax.families.table import family_of

FEATURES = 256  # of each number

SCORE = 6.0  # the refiner's aesthetic score, if none is given: SGM and diffusers

#: The pairs of numbers in the order in which a model takes them -> the least value of each.
PAIRS = {"original_size": 1, "crop": 0, "target_size": 1}


def pooled_width(config: Config) -> int:
    """Returns the width of the pooled embedding, which the vector of a model that takes sizes begins with."""
    return next(tower.projection for tower in (config.text_2, config.text) if tower and tower.projection)


def takes_sizes(config: Config) -> bool:
    """Is the model told sizes, as SDXL and its refiner are?"""
    return family_of(config).vector == "sizes"


def takes_score(config: Config) -> bool:
    """Is the model told an aesthetic score in place of a target size, as SDXL's refiner is?"""
    return takes_sizes(config) and config.unet.vector == pooled_width(config) + 5 * FEATURES


def sizes_of(
    config: Config,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
    aesthetic_score: float | None = None,
) -> np.ndarray:
    """Returns the numbers that a model takes, float64 [6], or [5] of the refiner.

    They are (height, width) of the original, (top, left) of the crop, and (height, width) of the target or the
    aesthetic score. A size of None is the model's own; a score of None is SCORE.
    SdjaxError: no pair of whole numbers, no number, or what the model does not take.
    """
    if target_size is not None and takes_score(config):
        raise SdjaxError(f"target_size {in_short(target_size)}: {config.name} takes none, SDXL does")
    own, found = (config.size, config.size), []
    for name, pair in (("original_size", original_size), ("crop", crop), ("target_size", target_size)):
        least, pair = PAIRS[name], own if pair is None else pair
        check_pair(name, pair, least)
        found += pair
    if not takes_score(config):
        if aesthetic_score is not None:
            raise SdjaxError(f"aesthetic_score {in_short(aesthetic_score)}: {config.name} takes none, the refiner does")
        return np.array(found, np.float64)
    if aesthetic_score is not None and not is_number(aesthetic_score):
        raise SdjaxError(f"aesthetic_score {in_short(aesthetic_score)}: a finite number")
    return np.array([*found[:4], SCORE if aesthetic_score is None else aesthetic_score], np.float64)


def check_pair(name: str, pair: Any, least: int) -> None:
    """SdjaxError unless `pair` is two whole numbers from `least` on."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(is_whole(side, least) for side in pair):
        raise SdjaxError(f"{name} {in_short(pair)}: two whole numbers from {least} on, height or top first")


def size_features(sizes: np.ndarray) -> np.ndarray:
    """Returns numbers [..., N] as features, float32 [..., N FEATURES]: cosines, then sines, of frequencies 1 to 1e-4.

    They are computed in float64: float32 sinusoids of 1024 are 5e-5 off.
    """
    half = FEATURES // 2
    angles = np.asarray(sizes, np.float64)[..., None] * np.exp(-np.log(10000.0) * np.arange(half) / half)
    found = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    return found.reshape(*found.shape[:-2], -1).astype(np.float32)
