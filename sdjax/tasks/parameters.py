"""The `parameters` text of a picture <-> the arguments that it was drawn with, made from OPTIONS and OTHERS."""

from collections.abc import Mapping
from typing import Any

from sdjax.errors import SdjaxError
from sdjax.image.parameters import parameters_text, parse_parameters, read_dtype
from sdjax.tasks.options import OPTIONS, Option

#: What else says how a picture came to be: arguments of some tasks alone, files, and what is done to finished pictures.
OTHERS: tuple[Option, ...] = (
    Option(
        "strength",
        None,
        float | None,
        "Above 0, to 1: how much of --init-image may change; 0.75 if left out, 1 with --mask.",
        flag=float | None,
        text="Denoising strength",
        read=float,
        place=19,
        axis=float,
    ),
    Option(
        "feather",
        0.0,
        float,
        "Pixels inside of --mask's border over which old and new are blended.",
        flag=float,
        text="Feather",
        read=float,
        place=22,
    ),
    Option("embedding", (), tuple, "", text="Embeddings", read=lambda value: tuple(value.split("\n")), place=18),
    Option("init_image", None, str, "", text="Init image", read=str, place=20),
    Option("mask", None, str, "", text="Mask", read=str, place=21),
    Option("safety_checker", None, str, "", text="Safety checker", read=str, place=23),
    Option("watermark", False, bool, "", text="Watermark", read="True".__eq__, place=24),
    Option("dtype", "float32", str, "Of the computation.", text="Dtype", read=read_dtype, place=25),
)


FIELDS = tuple(sorted((o for o in (*OPTIONS, *OTHERS) if o.text is not None), key=lambda option: option.place))


def describe(
    arguments: Mapping[str, Any], seed: int, size: tuple[int, int], model: str, source: str | None = None
) -> str:
    """The parameters text of one picture of `size` = (width, height) that a task drew with `arguments` from `seed`.

    `arguments`: txt2img's, and img2img's and inpaint's; init_image, mask, safety_checker and embedding, a tuple, are
    files' names. `model` is the model's name, `source` what sdjax.load was given, where that is another.
    """
    head, tail = {}, {}  # what is always written, and what is another than the default
    for option in FIELDS:
        value = {**arguments, "seed": seed}.get(option.name, option.default)
        if option.write:
            head[option.text] = option.write(value)
        elif value != option.default:
            tail[option.text] = value
    size_and_model = {"Size": f"{size[0]}x{size[1]}", "Model": model}
    source = {"Source": source if source != model else None}
    return parameters_text(
        arguments["prompt"], arguments.get("negative_prompt", ""), **head, **size_and_model, **tail, **source
    )


def understand(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters text -> (arguments of txt2img, the fields that are none of them).

    Raises SdjaxError naming the field whose value cannot be one.
    """
    prompt, negative, fields = parse_parameters(text)
    if not fields:
        raise SdjaxError("no line of settings that begins with `Steps: `")
    arguments: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    rest = {}
    for name, value in fields.items():
        try:
            found = read_field(name, value)
        except ValueError:
            raise SdjaxError(f"{name}: {value!r} cannot be read") from None
        if found is None:
            rest[name] = value
        else:
            arguments |= found
    return arguments, rest


def read_field(name: str, value: str) -> dict[str, Any] | None:
    """The arguments that a field of the text stands for; None where it is of no option. ValueError: no such value."""
    if name == "Size":
        width, height = value.split("x")
        return {"width": int(width), "height": int(height)}
    for option in FIELDS:
        if option.text == name:
            found = option.read(value)
            return found if isinstance(found, dict) or found is None else {option.name: found}
    return None
