"""Text to image: python sample/generate.py "a red apple" --steps 20 --num-images 4 --out out

Writes OUT/00000-seed<seed>.png and on (numbers go on after what is there), each with its settings in the PNG's
`parameters` text, and OUT/sheet.png when there is more than one. `--from PICTURE.png` takes the settings of such a
text, a web UI's too; what stands on the command line goes before. With `--prompts-file` picture i has prompt i and
seed + i, all devices share the work, OUT/manifest.jsonl records it, and after a kill the same command goes on.
"""

import os
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sdjax.cli import Progress, check_folder, run
from sdjax.errors import SdjaxError


@dataclass(frozen=True)
class Options:
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")] = ()
    """What to draw, in quotes."""
    model: str = "emoji"
    """"emoji", a diffusers folder, a .safetensors or .ckpt file, or a hub id."""
    negative_prompt: str = ""
    """What to keep away from."""
    sampler: str = "ddim"
    """One of sdjax.samplers: ddim plms ddpm euler euler_a heun lms dpmpp_2m dpmpp_2m_sde unipc lcm."""
    sigmas: str = "default"
    """default or karras: the noise levels, for euler, euler_a, heun, lms, dpmpp_2m, dpmpp_2m_sde and unipc."""
    steps: int = 50
    """1 to 1000."""
    guidance_scale: float = 7.5
    """1 follows the prompt loosely, 7.5 closely."""
    eta: float | None = None
    """Share of fresh noise, 0 to 1; the sampler's own if left out: 0 for ddim, 1 for ddpm, euler_a and dpmpp_2m_sde."""
    seed: int = 0
    """Image i has seed + i."""
    num_images: int = 1
    """How many pictures, of each prompt."""
    height: int | None = None
    """Pixels; the model's own size if left out."""
    width: int | None = None
    """Pixels; the model's own size if left out."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    out: Path = Path("out")
    """Folder for the pictures, made if need be."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Repeat this picture from its `parameters` text."""
    prompts_file: Path | None = None
    """UTF-8, a prompt a line; blank lines are skipped."""
    batch_size: int | None = None
    """Pictures at once with --prompts-file, over all devices; as many as are fast if left out."""
    cache: bool = True
    """Keep compiled programs in $SDJAX_CACHE or ~/.cache/sdjax."""


NAMES = ("negative_prompt", "sampler", "sigmas", "steps", "guidance_scale", "eta", "height", "width")  # of txt2img


def settings_of_picture(options: Options) -> Options | None:
    """The defaults that --from makes of a picture's text; says what it does not take from it."""
    from sdjax.parameters import read_parameters, understand

    if options.from_ is None:
        return None
    try:
        found, rest = understand(read_parameters(options.from_))
    except SdjaxError as error:
        raise SdjaxError(f"--from {options.from_}: {str(error).removeprefix(f'{options.from_}: ')}") from None
    source = rest.pop("Source", rest.get("Model"))
    if source is not None and (source == Options.model or Path(source).exists()):
        rest.pop("Model", None)
        found["model"] = source
    if rest:
        print(f"--from {options.from_}: not used: {', '.join(f'{k}: {v}' for k, v in rest.items())}", file=sys.stderr)
    known = {field.name for field in fields(Options)}
    found["prompt"] = () if options.prompts_file else (found["prompt"],)
    return replace(Options(), **{name: value for name, value in found.items() if name in known})


def check(options: Options) -> None:
    """Refuses what can be refused without a model."""
    if options.prompts_file and options.prompt:
        raise SdjaxError("--prompts-file: instead of a prompt, not beside one")
    if options.batch_size is not None and (options.batch_size < 1 or not options.prompts_file):
        raise SdjaxError(f"--batch-size {options.batch_size}: at least 1, and with --prompts-file only")
    if options.num_images < 1:
        raise SdjaxError(f"--num-images {options.num_images}: at least 1")
    if not options.prompts_file and len(options.prompt) != 1:
        quoted = f', {len(options.prompt)} given: put it in quotes' if options.prompt else ': what to draw, in quotes'
        raise SdjaxError(f"PROMPT: one expected{quoted}")


def main(options: Options) -> None:
    """Text to image."""
    from sdjax.batch import read_prompts

    check(options)
    prompts = read_prompts(options.prompts_file) if options.prompts_file else list(options.prompt)
    check_folder(options.out)

    import sdjax

    if options.cache:
        keep_programs()
    try:
        sd = sdjax.load(options.model, dtype=options.dtype)
    except SdjaxError as error:
        raise SdjaxError(f"--model: {error}") from None
    arguments = {name: getattr(options, name) for name in NAMES}
    try:
        (draw_batch if options.prompts_file else draw)(sd, prompts, arguments, options)
    except SdjaxError as error:
        flag = lambda m: f"--{m[0].replace('_', '-')}" if m[0] in (*NAMES, "seed", "num_images") else m[0]
        raise SdjaxError(re.sub(r"^\w+", flag, str(error))) from None


def draw(sd, prompts: list[str], arguments: dict, options: Options) -> None:
    """--num-images pictures of one prompt, and a sheet of them."""
    import sdjax
    from sdjax.image import contact_sheet, save_png

    images = sdjax.txt2img(sd, prompts, seed=options.seed, num_images=options.num_images, progress=Progress("step"),
                           **arguments)
    first = next_number(options.out)
    for i, image in enumerate(images):
        seed = options.seed + i
        text = text_of(sd, prompts[0], seed, image.size, arguments, options)
        print(save_png(image, options.out / f"{first + i:05d}-seed{seed}.png", text))
    if len(images) > 1:
        print(save_png(contact_sheet(images), options.out / "sheet.png"))


def draw_batch(sd, prompts: list[str], arguments: dict, options: Options) -> None:
    """--num-images pictures of each line of --prompts-file."""
    import jax

    import sdjax
    from sdjax.batch import run_batch
    from sdjax.cache import digest
    from sdjax.generate import chunk_size

    prompts = [prompt for prompt in prompts for _ in range(options.num_images)]
    height, width = (arguments[side] or sd.config.size for side in ("height", "width"))
    size = options.batch_size or chunk_size(len(prompts), height * width // sd.config.vae.factor**2)[0]
    settings = {**arguments, "height": height, "width": width, "seed": options.seed, "num_images": options.num_images,
                "dtype": options.dtype, "model": sd.config.name, "weights": digest(sd.params)}
    made = run_batch(
        lambda prompts, seed, progress: sdjax.txt2img(sd, prompts, seed=seed, progress=progress, **arguments),
        lambda i: text_of(sd, prompts[i], options.seed + i, (width, height), arguments, options),
        prompts, options.out, settings, options.seed, size, jax.process_index(), jax.process_count(),
        Progress("picture"))
    print(f"{options.out}: {made} pictures drawn")


def text_of(sd, prompt: str, seed: int, size: tuple[int, int], arguments: dict, options: Options) -> str:
    from sdjax.parameters import describe

    return describe(arguments | {"prompt": prompt}, seed, size, sd.config.name, options.model)


def keep_programs() -> None:
    """Compiled programs stay on disk."""
    import jax

    folder = os.environ.get("SDJAX_CACHE") or Path.home() / ".cache" / "sdjax"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def next_number(folder: Path) -> int:
    """One more than the highest number that a picture in the folder has."""
    return max((int(m[1]) + 1 for path in folder.iterdir() if (m := re.match(r"(\d{5,})-", path.name))), default=0)


if __name__ == "__main__":
    run(main, Options, settings_of_picture)
