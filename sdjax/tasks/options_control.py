"""The rows of OPTIONS that are for ControlNets and T2I-Adapters."""

from typing import Any

from sdjax.tasks.option import Option

MODES = ("balanced", "prompt", "control")

CONTROL_OPTIONS: tuple[Option, ...] = (
    Option(
        "control",
        None,
        "Control | Sequence[Control] | None",  # not imported here: --help needs no JAX
        "A ControlNet or T2I-Adapter, as `sdjax.load_control` gives it, or a list of them.",
        "Another one of the same configuration compiles nothing. A refiner walks without it.",
        static=True,
        program=False,
    ),
    Option(
        "control_image",
        None,
        Any,
        "What the control sees: PIL, uint8, or floats in [0, 1].",
        "It is resized to the picture's size. One for all pictures, or one for each; a list of one for each control of "
        "a list.",
        program=False,
    ),
    Option(
        "control_scale",
        1.0,
        "float | Sequence[float | Sequence[float]]",
        "How much it counts: a number, or one for each residual, from the UNet's first skip to its middle.",
        "A list of one for each control of a list.",
        program=False,
    ),
    Option(
        "control_interval",
        (0.0, 1.0),
        "tuple[float, float] | Sequence[tuple[float, float]]",
        "Shares of the steps, start and end: it is on in step i of N where i / N >= start and (i + 1) / N <= end.",
        "The steps that run are counted. A list of one for each control of a list.",
        program=False,
    ),
    Option(
        "control_mode",
        "balanced",
        "str | Sequence[str]",
        'What is more important: "balanced", "prompt" (the first residuals count less) or "control" (so, and on the '
        "side of the prompt alone, as diffusers' guess mode).",
        "A list of one for each control of a list.",
        static=True,
        program=False,
    ),
)
