"""The rows of OPTIONS that are for IP-Adapters."""

from collections.abc import Sequence

from sdjax.tasks.option import Option

IMAGE_PROMPT_OPTIONS: tuple[Option, ...] = (
    Option(
        "image_prompt",
        None,
        "tuple[ImagePrompt, Any] | Sequence[tuple[ImagePrompt, Any]] | None",  # not imported here: --help needs no JAX
        "An IP-Adapter, as `sdjax.load_image_prompt` gives it, and the picture that it sees: (adapter, picture).",
        "Or a list of such pairs, whose parts are added. The picture is PIL, uint8, or floats in [-1, 1] [H, W, 3], of "
        "which the centre square counts; a list of them is seen together; a list of lists has one list for each image. "
        "Other pictures, and another adapter of the same configuration, compile nothing. A refiner walks without it.",
        static=True,
        program=False,
    ),
    Option(
        "image_prompt_scale",
        1.0,
        float | Sequence[float],
        "How much the image prompt counts beside the text.",
        "A number, or one for each pair of a list.",
        flag=float,
        text="Image prompt scale",
        read=float,
        place=68,
        axis=float,
        program=False,
    ),
)
