"""OPTIONS: one row for each option of sampling, with its name, default, check, help, PNG text field and grid axis.

These rows make the tasks' signatures and docstrings, the command line, the PNG text both ways, the axes of grids and
the list of options that an exported program takes. To add an option, add a row and the code that uses it. Those of SDXL
are in options_sdxl.py, and so on.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import field, make_dataclass
from functools import wraps
from typing import Any

from sdjax.checks import check_model, is_whole
from sdjax.diffusion.schedule import SIGMAS
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError
from sdjax.image.parameters import read_interval, read_sampler, read_schedule
from sdjax.tasks.option import FUNCTION, SEED, SHARE, Option, label_of, one_of
from sdjax.tasks.options_control import CONTROL_OPTIONS
from sdjax.tasks.options_image_prompt import IMAGE_PROMPT_OPTIONS
from sdjax.tasks.options_lora import LORA_OPTIONS
from sdjax.tasks.options_sdxl import SDXL_OPTIONS
from sdjax.text.syntax import SYNTAXES

OUTPUTS = ("pil", "pixels", "latents", "trajectory")
MOST_IMAGES = 2**20  # largest num_images: prompts and seeds of all images are listed before the first is drawn

#: All shared options, in the order of the tasks' arguments.
OPTIONS: tuple[Option, ...] = (
    Option(
        "negative_prompt",
        "",
        "str | Sequence[str] | Cond",  # not imported here: --help needs no JAX
        "What to keep away from.",
        "AND is text in it. One for all prompts, or a list with one for each.",
        flag=str,
    ),
    Option("steps", 50, int, "1 to 1000.", flag=int, text="Steps", read=int, write=int, place=1, axis=int),
    Option(
        "sampler",
        "ddim",
        "str | Sampler",
        f"One of sdjax.samplers: {' '.join(samplers)}.",
        "Or a `sdjax.sampling.Sampler` of your own.",
        flag=str,
        text="Sampler",
        read=read_sampler,
        write=label_of,
        place=2,
        axis=str,
    ),
    Option(
        "guidance_scale",
        None,
        float | Sequence[float] | Callable[[int], float] | None,
        "1 follows the prompt loosely, 7.5 closely; the model's own if left out.",
        "A number; [steps] of them; a function of the step, from 0 on; or None, `sd.config.guidance_scale`. 1 is the "
        "conditional model alone.",
        flag=float | None,
        aliases=("--cfg-scale",),
        text="CFG scale",
        read=float,
        write=lambda value: value,
        place=4,
        axis=float,
    ),
    Option(
        "eta",
        None,
        float | None,
        "Share of fresh noise, 0 to 1; the sampler's own if left out: "
        + ", ".join(f"{s.eta:g} for {s.name}" for s in samplers.values() if s.eta is not None)
        + ".",
        flag=float | None,
        text="Eta",
        read=float,
        place=10,
        axis=float,
    ),
    Option(
        "seed",
        0,
        int,
        "Image i has seed + i.",
        "It depends on nothing else, but for rounding.",
        flag=int,
        text="Seed",
        read=int,
        write=int,
        place=5,
        axis=int,
    ),
    Option(
        "num_images",
        1,
        int,
        "How many pictures, of each prompt.",
        check=lambda value: is_whole(value, 1, MOST_IMAGES),
        right=f"a whole number from 1 to {MOST_IMAGES}",
        flag=int,
        aliases=("-n",),
        text="Images",
        read=int,
        place=52,
        program=False,
    ),
    Option(
        "height",
        None,
        int | None,
        "Pixels; the model's own size, or the init image's, if left out.",
        flag=int | None,
        static=True,
        program=False,
    ),
    Option(
        "width",
        None,
        int | None,
        "Pixels; the model's own size, or the init image's, if left out.",
        flag=int | None,
        static=True,
        program=False,
    ),
    Option("latents", None, Any, "Unit noise [B, h, w, 4] in place of the seeds' first draw.", program=False),
    Option(
        "output",
        "pil",
        str,
        '"pil", a list of images; "pixels", float32 [B, height, width, 3] clipped to [-1, 1]; "latents", scaled '
        '[B, h, w, 4]; "trajectory", a `sdjax.tasks.engine.Trajectory`: x and x0 of every evaluation of the model.',
        **one_of(OUTPUTS),
        program=False,
    ),
    Option(
        "progress",
        None,
        Callable[[int, int], None] | None,
        "Called with (step, total) after each evaluation.",
        **FUNCTION,
    ),
    Option(
        "sigmas",
        "default",
        str,
        f"One of {' '.join(SIGMAS)}: the noise levels. All but default are for "
        f"{', '.join(s.name for s in samplers.values() if len(s.sigmas) > 1)}.",
        **one_of(tuple(SIGMAS)),
        flag=str,
        text="Schedule type",
        read=read_schedule,
        write=lambda value: SIGMAS[value].label if value in SIGMAS and value != "default" else None,
        place=3,
        axis=str,
    ),
    Option(
        "spacing",
        None,
        str | None,
        "Of the timesteps: leading, trailing or linspace; the sampler's own if left out.",
        "See `sdjax.sampling.plan`.",
        flag=str | None,
        text="Timestep spacing",
        read=str,
        place=11,
    ),
    Option(
        "clip_skip",
        1,
        int,
        "1 is the text tower's last layer, 2 the one before.",
        "See `sdjax.encode_prompt`.",
        flag=int,
        text="Clip skip",
        read=int,
        place=13,
        axis=int,
        static=True,
        program=False,
    ),
    Option(
        "syntax",
        "a1111",
        str,
        "Of prompts: a1111, where (word:1.3), [word], BREAK and AND mean something, or plain.",
        **one_of(SYNTAXES),
        flag=str,
        text="Prompt syntax",
        read=str,
        place=12,
    ),
    Option(
        "preview",
        None,
        Callable[[int, list[int], list], None] | None,
        "Called with (step, image numbers, their x0 as PIL images) every `preview_every` evaluations.",
        **FUNCTION,
    ),
    Option(
        "preview_every",
        10,
        int,
        "Evaluations from one preview to the next.",
        check=lambda value: is_whole(value, 1),
        right="a whole number of steps from 1 on",
    ),
    Option(
        "finished",
        None,
        Callable[[list[int], Any], None] | None,
        "Called with (image numbers, their results in the form of `output`) as soon as some images are done.",
        **FUNCTION,
    ),
    Option(
        "guidance_rescale",
        0.0,
        float,
        "0 to 1: takes back the contrast that guidance adds.",
        "arXiv 2305.08891, section 3.4.",
        **SHARE,
        flag=float,
        text="Guidance rescale",
        read=float,
        place=16,
        axis=float,
    ),
    Option(
        "guidance_interval",
        None,
        tuple[float, float] | None,
        "Two sigmas, low and high, between which there is guidance; everywhere if left out.",
        "arXiv 2404.07724.",
        flag=tuple[float, float] | None,
        text="Guidance interval",
        read=read_interval,
        place=17,
    ),
    Option(
        "guidance_fn",
        None,
        Callable | None,
        "(x, x0, step) -> x0, traced, after guidance_scale; may use jax.grad.",
        **FUNCTION,
        static=True,
    ),
    Option(
        "variation_seed",
        0,
        int,
        "Whose noise is blended in by variation_strength.",
        **SEED,
        flag=int,
        text="Variation seed",
        read=int,
        place=14,
        axis=int,
    ),
    Option(
        "variation_strength",
        0.0,
        float,
        "0 to 1: the noise is turned from seed + i's (0) towards variation_seed's (1).",
        "For many variations of seed 7's picture take variation_seed=7 and a strength near 1.",
        **SHARE,
        flag=float,
        text="Variation seed strength",
        read=float,
        place=15,
        axis=float,
        program=False,
    ),
    *SDXL_OPTIONS,
    *LORA_OPTIONS,
    *CONTROL_OPTIONS,
    *IMAGE_PROMPT_OPTIONS,
)

TaskOptions = make_dataclass(
    "TaskOptions",
    [(option.name, option.type, field(default=option.default)) for option in OPTIONS],
    frozen=True,
    namespace={"__doc__": "The keyword arguments that all tasks share: OPTIONS as a dataclass."},
)
TaskOptions.__module__ = __name__


def described(options: Sequence[Option] = OPTIONS) -> str:
    """Returns the help of each option and which of them are compiled for, as text for docstrings."""
    lines = [f"{option.name}: {' '.join(filter(None, (option.help, option.more)))}" for option in options]
    static = ", ".join(option.name for option in options if option.static)
    return "\n".join(lines) + (
        f"\n\nA call compiles again when one of these changes: {static}; the model's config and dtype;\n"
        "how many pictures go through at once, how many chunks their prompts have and how many prompts AND composes;\n"
        'whether latents are given, whether output is "trajectory", whether there is progress or preview (alike);\n'
        "and at some values of steps (see `sdjax.sampling.plan`)."
    )


def takes_options(task: Callable) -> Callable:
    """Decorates task(..., options: TaskOptions): puts the rows of OPTIONS into its signature and docstring.

    Arguments that do not fit the signature raise SdjaxError, as every other refusal does, and not TypeError.
    """
    own = [p for p in inspect.signature(task).parameters.values() if p.name != "options"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shared = [inspect.Parameter(o.name, kind, default=o.default, annotation=o.type) for o in OPTIONS]
    signature = inspect.Signature([*own, *shared])

    @wraps(task)
    def call(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise SdjaxError(f"{task.__name__}: {error}; it takes {', '.join(signature.parameters)}") from None
        mine = {p.name: bound.arguments.pop(p.name) for p in own if p.name in bound.arguments}
        check_model(mine.get("sd"))
        return task(**mine, options=TaskOptions(**bound.arguments))

    call.__signature__ = signature
    call.__doc__ = (
        f"{inspect.cleandoc(task.__doc__)}\n\n{described()}\nWhat is out of range is refused by name: SdjaxError."
    )
    return call
