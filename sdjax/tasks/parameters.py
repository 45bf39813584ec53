"""The `parameters` text in a PNG <-> the arguments that drew the picture. OPTIONS and OTHERS define both ways."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from sdjax.checks import is_whole
from sdjax.diffusion.schedule import SIGMAS
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError
from sdjax.image.masks import CELLS
from sdjax.image.parameters import AUTOMATIC, parameters_text, parse_parameters, read_dtype, read_sampler
from sdjax.tasks.option import Option, named, one_of
from sdjax.tasks.options import OPTIONS

UPSCALERS = {"latents": "Latent (bicubic)", "pixels": "Lanczos"}  # the web UI's names


def read_upscaler(value: str) -> str | None:
    """Returns what hires enlarges. None: something that is not here."""
    return "pixels" if value == UPSCALERS["pixels"] else "latents" if value.startswith("Latent") else None


def lists(name: str, text: str, place: int) -> Option:
    """Returns the row of an option of several names, each on a line of its own."""
    return Option(name, (), tuple, "", text=text, read=lambda value: tuple(value.split("\n")), place=place)


def read_numbers(value: str) -> tuple[float, ...]:
    """Reads "0.5 1". ValueError: these are no numbers."""
    return tuple(map(float, value.split()))


#: Fields that are not in OPTIONS: arguments of some tasks alone, files, and what is done to finished pictures.
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
    Option(
        "mask_cells",
        "corner",
        str,
        "corner or any: of a latent's square, which pixel must be white for it to be painted anew.",
        **one_of(CELLS),
        flag=str,
        text="Mask cells",
        read=str,
        place=34,
    ),
    lists("embedding", "Embeddings", 18),
    Option("init_image", None, str, "", text="Init image", read=str, place=20),
    Option("mask", None, str, "", text="Mask", read=str, place=21),
    Option("map", None, str, "", text="Map", read=str, place=26),
    Option("depth", None, str, "", text="Depth", read=str, place=28),
    Option("lowres", None, str, "", text="Small picture", read=str, place=29),
    Option("image", None, str, "", text="Image", read=str, place=31),
    Option("noise_level", None, int | None, "", text="Noise level", read=int, place=30),
    Option("sdxl_clip_skip", 1, int, "", text="SDXL clip skip", read=lambda value: {"clip_skip": int(value)}, place=13),
    Option("config", None, str, "", text="Config", read=str, place=27),
    Option("unet", None, str, "", text="UNet", read=str, place=32),
    Option("vae", None, str, "", text="VAE file", read=str, place=33),
    lists("lora", "Loras", 56),
    Option("refiner", None, str, "", text="Refiner", read=str, place=51),
    lists("control", "Control", 57),
    lists("control_image", "Control image", 58),
    lists("control_preprocess", "Control preprocess", 59),
    Option("control_scale", (), tuple, "", text="Control scale", read=read_numbers, place=60),
    Option("control_interval", (), tuple, "", text="Control interval", read=read_numbers, place=61),
    lists("control_mode", "Control mode", 62),
    Option("canny_low", 100, float, "", text="Canny low", read=float, place=63),
    Option("canny_high", 200, float, "", text="Canny high", read=float, place=64),
    lists("image_prompt", "Image prompt", 65),
    lists("image_prompt_encoder", "Image prompt encoder", 66),
    lists("image_prompt_image", "Image prompt image", 67),
    Option("hed", None, str, "", text="HED", read=str, place=69),
    lists("grid", "Grid", 53),
    Option("hires", None, float | None, "", text="Hires upscale", read=float, place=35),
    Option("hires_steps", None, int | None, "", text="Hires steps", read=int, place=36),
    Option("hires_upscale", None, str, "", text="Hires upscaler", read=read_upscaler, place=37),
    Option("outpaint", None, str, "", text="Outpaint", read=str, place=38),
    Option("safety_checker", None, str, "", text="Safety checker", read=str, place=23),
    Option("watermark", False, bool, "", text="Watermark", read="True".__eq__, place=24),
    Option("dtype", "float32", str, "Of the computation.", text="Dtype", read=read_dtype, place=25),
)


FIELDS = tuple(sorted((o for o in (*OPTIONS, *OTHERS) if o.text is not None), key=lambda option: option.place))


def describe(
    arguments: Mapping[str, Any],
    seed: int,
    size: tuple[int, int],
    model: str,
    source: str | None = None,
    model_hash: str | None = None,
    **more: Any,
) -> str:
    """Returns the parameters text of one picture.

    arguments: those that the task was called with (txt2img's, img2img's and inpaint's), and the names of files:
        init_image, mask, safety_checker, and embedding, a tuple.
    seed: the seed of this picture.
    size: (width, height) in pixels.
    model: the model's name.
    source: what sdjax.load was given; it is written if it differs from `model`.
    model_hash: as `sdjax.weights.hashes.model_hash` gives it.
    more: further fields, which no argument stands for.
    """
    head, tail = {}, {}  # fields that are always written, and those that differ from their default
    for option in FIELDS:
        value = {**arguments, "seed": seed}.get(option.name, option.default)
        if option.write:
            head[option.text] = option.write(value)
        elif value != option.default:
            tail[option.text] = value
    sampler = named(arguments.get("sampler", "ddim"))
    if head["Schedule type"] is None and sampler is not None and len(sampler.sigmas) > 1:
        head["Schedule type"] = SIGMAS["default"].label  # the web UI would take its own default
    if "Hires upscaler" in tail:
        tail["Hires upscaler"] = UPSCALERS[tail["Hires upscaler"]] if arguments.get("hires") else None
    size_and_model = {"Size": f"{size[0]}x{size[1]}", "Model hash": model_hash, "Model": model}
    last = {"Source": source if source != model else None} | more | {"Version": f"sdjax {version('sdjax')}"}
    text = parameters_text(
        arguments["prompt"], arguments.get("negative_prompt", ""), **head, **size_and_model, **tail, **last
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files need not be UTF-8


def understand(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters text -> (arguments of tasks, by name; the fields that stand for none, but for the version).

    A sampler that is not here, a seed outside 0 .. 2^32 - 1, and an eta for a sampler that takes none stand for none.
    SdjaxError: the text has no line of settings, or a field's value cannot be read; it names the field.
    """
    prompt, negative, fields = parse_parameters(text)
    if "Steps" not in fields:
        raise SdjaxError("no line of settings, as `Steps: 20, Sampler: ddim, Seed: 1`")
    arguments: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    rest = {}
    if fields.get("Schedule type", "").lower() == "automatic":
        sampler = read_sampler(fields.get("Sampler", "ddim"))["sampler"]
        fields["Schedule type"] = AUTOMATIC.get(sampler, fields["Schedule type"])
    for name, value in fields.items():
        if name == "Version":
            continue
        try:
            found = read_field(name, value)
        except ValueError:
            raise SdjaxError(f"{name}: {value!r} cannot be read") from None
        if found is None:
            rest[name] = value
        else:
            arguments |= found
    sampler = samplers.get(arguments.get("sampler", "ddim"))
    for name, field, fits in (
        ("sampler", "Sampler", sampler is not None),
        ("seed", "Seed", is_whole(arguments.get("seed", 0), 0, 2**32 - 1)),
        ("eta", "Eta", sampler is None or sampler.eta is not None or not arguments.get("eta")),
    ):
        if not fits:
            arguments.pop(name)
            rest[field] = fields[field]
    return arguments, rest


def read_field(name: str, value: str) -> dict[str, Any] | None:
    """Returns the arguments that a field of the text stands for, or None for no argument. ValueError: a bad value."""
    if name == "Size":
        width, height = value.split("x")
        return {"width": int(width), "height": int(height)}
    for option in FIELDS:
        if option.text == name:
            found = option.read(value)
            return found if isinstance(found, dict) or found is None else {option.name: found}
    return None
