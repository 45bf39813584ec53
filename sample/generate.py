"""Text to image: python sample/generate.py "a red apple" --steps 20 --num-images 4 --out out

Writes OUT/00000-seed<seed>.png and on (numbers go on after what is there), each with its settings in the PNG's
`parameters` text, and OUT/sheet.png when there is more than one.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sdjax.cli import check_folder, refuse, run


@dataclass
class Options:
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """What to draw."""
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
    """How many pictures."""
    height: int | None = None
    """Pixels; the model's own size if left out."""
    width: int | None = None
    """Pixels; the model's own size if left out."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    out: Path = Path("out")
    """Folder for the pictures, made if need be."""
    cache: bool = True
    """Keep compiled programs in $SDJAX_CACHE or ~/.cache/sdjax."""


def main(options: Options) -> None:
    """Text to image."""
    check_folder(options.out)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found" is no news here

    import jax
    from tqdm import tqdm

    import sdjax
    from sdjax.image import contact_sheet, parameters_text, save_png

    if options.cache:
        folder = os.environ.get("SDJAX_CACHE") or Path.home() / ".cache" / "sdjax"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    names = ("negative_prompt", "steps", "sampler", "sigmas", "guidance_scale", "eta", "seed", "num_images", "height",
             "width")
    try:
        sd = sdjax.load(options.model, dtype=options.dtype)
    except sdjax.SdjaxError as error:
        refuse(f"--model: {error}")
    bars = []  # made at the first step, so that a refusal stays alone on its line

    def progress(step: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, unit="step"))
        bars[0].update(step - bars[0].n)
        if step == total:
            bars[0].close()

    try:
        settings = {name: getattr(options, name) for name in names}
        images = sdjax.txt2img(sd, options.prompt, progress=progress, **settings)
    except sdjax.SdjaxError as error:
        refuse(re.sub(r"^\w+", lambda m: f"--{m[0].replace('_', '-')}" if m[0] in names else m[0], str(error)))

    first = next_number(options.out)
    try:
        for i, image in enumerate(images):
            seed = options.seed + i
            text = parameters_text(
                options.prompt, options.negative_prompt, Steps=options.steps, Sampler=options.sampler,
                CFG_scale=options.guidance_scale, Seed=seed, Size=f"{image.width}x{image.height}", Model=sd.config.name,
                **({"Eta": options.eta} if options.eta is not None else {}),
                **({"Sigmas": options.sigmas} if options.sigmas != "default" else {}))
            print(save_png(image, options.out / f"{first + i:05d}-seed{seed}.png", text))
        if len(images) > 1:
            print(save_png(contact_sheet(images), options.out / "sheet.png"))
    except OSError as error:
        refuse(f"--out {options.out}: {error}")


def next_number(folder: Path) -> int:
    """One more than the highest number that a picture in the folder has."""
    return max((int(m[1]) + 1 for path in folder.iterdir() if (m := re.match(r"(\d{5,})-", path.name))), default=0)


if __name__ == "__main__":
    run(main, Options)
