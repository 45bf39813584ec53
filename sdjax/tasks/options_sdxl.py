"""The rows of OPTIONS that are for SDXL and for handing over to a refiner."""

from collections.abc import Sequence

from sdjax.checks import is_number
from sdjax.image.parameters import read_pair, read_truth
from sdjax.tasks.option import SHARE, Option

SCORE = {"check": is_number, "right": "a finite number", "flag": float, "read": float, "program": False}


def size(name: str, text: str, place: int, default: tuple[int, int] | None, help: str) -> Option:
    """Returns the row of two numbers, height or top first."""
    kind = tuple[int, int] | None if default is None else tuple[int, int]
    return Option(name, default, kind, help, flag=kind, text=text, read=read_pair, place=place, program=False)


SDXL_OPTIONS: tuple[Option, ...] = (
    Option(
        "prompt_2",
        None,
        str | Sequence[str] | None,
        "SDXL: the prompt of the second text tower; the same if left out.",
        "A list has one for each prompt. A refiner reads the prompt.",
        flag=str | None,
        text="Prompt 2",
        read=str,
        place=40,
        program=False,
    ),
    Option(
        "negative_prompt_2",
        None,
        str | None,
        "SDXL: the negative prompt of the second text tower; the same if left out.",
        flag=str | None,
        text="Negative prompt 2",
        read=str,
        place=41,
        program=False,
    ),
    size("original_size", "Original size", 42, None, "SDXL: height and width; those of the picture if left out."),
    size("crop", "Crop", 43, (0, 0), "SDXL: top and left of the crop that the picture is asked to be."),
    size("target_size", "Target size", 44, None, "SDXL: height and width; those of the picture if left out."),
    size("negative_original_size", "Negative original size", 45, None, "SDXL: that of the prompt if left out."),
    size("negative_crop", "Negative crop", 46, None, "SDXL: that of the prompt if left out."),
    size("negative_target_size", "Negative target size", 47, None, "SDXL: that of the prompt if left out."),
    Option(
        "aesthetic_score",
        6.0,
        float,
        "SDXL's refiner: how good the picture should be, about 1 to 10.",
        text="Aesthetic score",
        place=48,
        **SCORE,
    ),
    Option(
        "negative_aesthetic_score",
        2.5,
        float,
        "SDXL's refiner: the score on the negative side.",
        text="Negative aesthetic score",
        place=49,
        **SCORE,
    ),
    Option(
        "zero_negative",
        None,
        bool | None,
        "SDXL: does an empty negative prompt mean zeros in place of its states? As the model says if left out.",
        check=lambda value: value is None or isinstance(value, bool),
        right="True, False or None",
        flag=bool | None,
        text="Zero negative",
        read=read_truth,
        place=50,
        program=False,
    ),
    Option(
        "refiner",
        None,
        "StableDiffusion | None",
        "A second model, which walks the last steps of the same walk: SDXL's refiner, or any with the same latents.",
        "Its history and fresh noise go on.",
        static=True,
        program=False,
    ),
    Option(
        "refiner_start",
        0.8,
        float,
        "Share of the noise's timesteps, 0 to 1, after which --refiner takes over: at t < round(1000 - 1000 f).",
        **SHARE,
        flag=float,
        text="Refiner switch at",
        read=float,
        place=52,
        axis=float,
        program=False,
    ),
    Option(
        "refiner_cond",
        None,
        "Cond | None",
        "The refiner's prompt, where the prompt is a Cond.",
        program=False,
    ),
    Option(
        "refiner_negative",
        None,
        "Cond | None",
        "The refiner's negative prompt, where the negative prompt is a Cond.",
        program=False,
    ),
)
