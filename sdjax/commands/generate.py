"""Text to image: python sample/generate.py "a red apple" --steps 20 --num-images 4 --out out

Writes OUT/00000-seed<seed>.png and so on, each with its settings in the PNG's `parameters` text, and OUT/sheet.png if
there are several pictures. Numbers continue after the pictures that are in OUT already.

--init-image F [--strength S] [--mask F]   starts from a picture; with --mask repaints it where the mask is white
--control F --control-image P             a ControlNet or T2I-Adapter, and the picture that steers it
--from PICTURE.png                         takes the settings from a picture's text, a web UI's too; options override
--classes 207,360 | --layout boxes.json | --map map.png | --depth depth.png | --lowres small.png
                                           what models of these are asked for
--grid "guidance_scale=3,5" --grid seed=0..3    all combinations; the last axis runs along the columns of the sheet
--prompts-file F                           picture i has prompt i and seed + i; all devices and processes share the
                                           work, OUT/manifest.jsonl records it, after a kill the same command goes on
"""

import hashlib
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from sdjax.commands.command_line import Progress
from sdjax.commands.conditions import BESIDE, FILES, asked, beside_of, lines_of, small_picture, with_negative
from sdjax.commands.controls import OF_TASKS, load_controls, settings_of_controls, texts_of_controls
from sdjax.commands.generate_options import (
    NAMES,
    PARTS,
    PICTURES,
    SIDES,
    Options,
    canvas,
    check_options,
    read_sides,
    skips_of_picture,
    with_names,
)
from sdjax.commands.generate_options import settings_of_picture as defaults  # noqa: F401  what --from gives, for `run`
from sdjax.commands.saving import read_picture, save_next, save_sheet
from sdjax.devices.host import return_memory
from sdjax.errors import SdjaxError, flags_of, loading, prefixed
from sdjax.files import check_folder


class Task:
    """The task that the options name, with its arguments: txt2img, with --init-image img2img, with --mask inpaint."""

    def __init__(self, sd, options: Options, image, mask, refiner=None):
        import sdjax
        from sdjax.conditioning.sizes import takes_sizes
        from sdjax.image import watermark
        from sdjax.image.masks import read_masks
        from sdjax.image.pixels import read_images
        from sdjax.tasks.options import TaskOptions as Arguments
        from sdjax.tasks.request import check_size

        self.sd, self.options, self.checker, self.sized = sd, options, None, takes_sizes(sd.config)
        self.mask = mask
        self.arguments = {name: getattr(options, name) for name in NAMES}
        if self.sized and skips_of_picture(options):
            self.arguments["clip_skip"] = 1
        if self.arguments["guidance_scale"] is None:  # a picture's text says which one it was
            self.arguments["guidance_scale"] = sd.config.guidance_scale
        self.arguments |= {} if refiner is None else {"refiner": refiner}
        self.arguments |= load_controls(options, sd)
        if options.preview:
            self.arguments |= {"preview": self.preview, "preview_every": options.preview}
        self.function = sdjax.txt2img if image is None else sdjax.img2img if mask is None else sdjax.inpaint
        self.height, self.width = check_size(sd.config, Arguments(height=options.height, width=options.width))
        if options.hires is not None:
            self.function = sdjax.hires
            names = {"scale": "hires", "strength": "hires_strength", "upscale": "hires_upscale"}
            self.arguments |= {name: getattr(options, flag) for name, flag in names.items()}
            self.arguments["hires_steps"] = options.hires_steps
        if options.outpaint is not None:
            self.function, sides = sdjax.outpaint, dict(zip(SIDES, read_sides(options.outpaint), strict=True))
            self.arguments |= sides | {"image": image, "feather": options.feather, "mask_cells": options.mask_cells}
            self.height, self.width = canvas(image, **sides)
        elif image is not None:
            with prefixed(f"--init-image {options.init_image}: "):
                self.arguments["image"] = read_images(image, options.height, options.width, sd.config.multiple)
            self.height, self.width = self.arguments["image"].shape[1:3]
        if options.lowres is not None:
            small = small_picture(sd, options.lowres)
            self.function, level = sdjax.upscale, options.noise_level
            self.arguments |= {"pictures": small} | ({} if level is None else {"noise_level": level})
            self.height, self.width = (side * sd.config.vae.factor for side in small.shape[1:3])
            for name in ("height", "width"):  # what --from says is no choice
                if self.arguments[name] == getattr(self, name):
                    self.arguments[name] = None
        if mask is not None:
            masks = read_masks(mask, (self.height, self.width), image)
            self.arguments |= {"mask": masks, "feather": options.feather, "mask_cells": options.mask_cells}
        self.arguments |= {} if options.strength is None else {"strength": options.strength}
        if options.watermark and self.width * self.height < watermark.PIXELS:
            raise SdjaxError(
                f"--watermark: takes {watermark.PIXELS} pixels, 256 x 256, and more, these pictures have "
                f"{self.width} x {self.height}"
            )
        if options.safety_checker is not None:
            with prefixed(f"--safety-checker {options.safety_checker}: "):
                self.checker = sdjax.load_safety_checker(options.safety_checker)

    def asked(self, lines: list[str]):
        """Returns what the task is called with for some lines; see commands/conditions.py."""
        return asked(self.sd, [self.split(line)[0] for line in lines], self.options)

    def split(self, line: str) -> tuple[str, str | None]:
        """Returns the prompt and the negative prompt of a line of --prompts-file; None: it has none of its own."""
        of_text = self.options.prompts_file is not None and self.sd.config.text is not None
        return with_negative(line) if of_text else (line, None)

    def negatives(self, lines: list[str]) -> dict[str, list[str]]:
        """Returns the argument negative_prompt if some lines have one of their own."""
        found = [self.split(line)[1] for line in lines]
        if not any(negative is not None for negative in found):
            return {}
        return {"negative_prompt": [self.arguments["negative_prompt"] if one is None else one for one in found]}

    def take_size(self, lines: list[str]) -> None:
        """Takes the size of the pictures from what stands beside them, if anything does."""
        if beside_of(self.sd.config) in ("map", "depth"):
            concat, factor = self.asked(lines[:1]).concat, self.sd.config.vae.factor
            self.height, self.width = (side * factor for side in concat.shape[1:3])

    def check(self, prompts: list[str], **changes) -> None:
        """Checks all arguments before the first picture is drawn. changes: those of a grid's cell."""
        from sdjax.conditioning.text import text_tower_of
        from sdjax.tasks.options import TaskOptions as Arguments
        from sdjax.tasks.plans import plan_of
        from sdjax.tasks.request import check

        arguments = self.arguments | changes
        if "strength" in changes and "image" not in arguments:
            raise SdjaxError("--grid strength: needs --init-image")
        arguments = arguments | self.negatives(prompts)
        own = Arguments(**{name: arguments[name] for name in (*NAMES, *OF_TASKS, "refiner") if name in arguments})
        check(self.sd.config, self.asked(prompts), own)
        plan_of(self.sd, own, arguments.get("strength"))
        if self.sd.config.text is not None:
            text_tower_of(self.sd, own.clip_skip)

    def draw(self, prompts: list[str], progress, **changes) -> list:
        """Returns the pictures of some prompts, as they are saved unless a function `finished` is given them before."""
        arguments = self.arguments | self.negatives(prompts) | changes
        images = self.function(self.sd, self.asked(prompts), progress=progress, **arguments)
        return images if "finished" in changes else self.finish(images)

    def finish(self, images: list) -> list:
        """Returns pictures as they are saved: black if --safety-checker flags them, with --watermark's bytes."""
        import sdjax
        from sdjax.families.table import family_of
        from sdjax.image import watermark

        if self.checker is not None:
            flags = sdjax.check_safety(self.checker, images)
            images = [image.point(lambda _: 0) if flag else image for image, flag in zip(images, flags, strict=True)]
            if flags.any():
                print(f"--safety-checker: {flags.sum()} of {len(flags)} pictures made black", file=sys.stderr)
        if self.options.watermark:
            content = family_of(self.sd.config).watermark(self.sd.config)
            images = [watermark.embed(image, content) for image in images]
        return images

    def steps(self) -> float:
        """Returns how many steps an evaluation of the model is: heun takes two evaluations for most of its steps."""
        from sdjax.diffusion.plan import steps_of
        from sdjax.tasks.engine import evaluations
        from sdjax.tasks.options import TaskOptions as Arguments
        from sdjax.tasks.plans import plan_of

        own, strength = Arguments(**{name: self.arguments[name] for name in NAMES}), self.arguments.get("strength")
        walks = [(own, None if strength == 1 else strength)]
        if self.options.hires is not None:
            walks = [(own, None), (replace(own, steps=self.options.hires_steps or own.steps), strength)]
        elif strength is None and self.function.__name__ == "img2img":
            walks = [(own, 0.75)]
        asked = sum(one.steps if share is None else steps_of(share, one.steps) for one, share in walks)
        return asked / sum(evaluations(plan_of(self.sd, one, share)) for one, share in walks)

    def preview(self, step: int, numbers: list[int], pictures: list) -> None:
        """Writes OUT/preview.png."""
        from sdjax.image.png import save_png
        from sdjax.image.sheets import contact_sheet

        save_png(contact_sheet(self.finish(pictures)), self.options.out / "preview.png")

    @cached_property
    def model_hash(self) -> str | None:
        """The hash of the model's file, computed when the first picture is saved, or None if it cannot be."""
        from sdjax.model.load import find_source
        from sdjax.weights.hashes import model_hash

        with suppress(SdjaxError, OSError):
            return model_hash(find_source(self.options.model)[0])

    def text(self, prompt: str, seed: int, changes: dict | None = None, **sheet) -> str:
        """Returns the parameters text of a picture, or of a `sheet` whose first one it is, with its own arguments."""
        from sdjax.tasks.parameters import describe

        prompt, negative = self.split(prompt)
        changes = (changes or {}) | ({} if negative is None else {"negative_prompt": negative})
        others = (*PICTURES, *PARTS, "noise_level", "config", "refiner", "embedding", "safety_checker", "watermark")
        others = (*others, "hires", "hires_upscale", "hires_steps", "outpaint")
        others = {name: getattr(self.options, name) for name in (*others, "dtype")} | {"num_images": 1} | sheet
        others |= texts_of_controls(self.options)
        own = self.arguments | changes
        if self.sized:  # whose clip skip means another layer than the web UI's
            others |= {"clip_skip": 1, "sdxl_clip_skip": own["clip_skip"]}
        if self.sd.config.text is None:  # the prompt's place has it
            others |= dict.fromkeys(BESIDE)  # but not --lowres
            prompt = "" if self.options.lowres else prompt
        return describe(
            {**own, **others, "prompt": prompt},
            seed,
            (self.width, self.height),
            self.sd.config.name,
            self.options.model,
            self.model_hash,
        )


def main(options: Options) -> None:
    """Text to image."""
    from sdjax.commands.grid import read_axes
    from sdjax.files import read_prompts

    options = with_names(options)
    check_options(options)
    with prefixed("--"):
        axes = read_axes(options.grid)
    lines = read_prompts(options.prompts_file) if options.prompts_file else None
    image, mask = (read_picture(name, getattr(options, name)) for name in ("init_image", "mask"))
    check_folder(options.out)

    import sdjax
    from sdjax.devices.processes import start_processes

    start_processes(options.coordinator, options.num_processes, options.process_id)
    return_memory()
    with loading():
        parts = {name: getattr(options, name) for name in PARTS}
        sd = sdjax.load(options.model, dtype=options.dtype, config=options.config, **parts)
    with prefixed("--refiner: "):
        refiner = options.refiner and sdjax.load(options.refiner, dtype=options.dtype)
    with prefixed("--embedding "):
        for path in options.embedding:
            sd = sdjax.add_embedding(sd, path)
    own = ("refiner", "strength", "feather", "mask_cells", "mask", "hires_steps", "classes", "layout", "noise_level")
    with flags_of((*NAMES, *OF_TASKS, *own, *FILES)):
        prompts = lines_of(sd.config, options, lines)
        task = Task(sd, options, image, mask, refiner)
        task.take_size(prompts)
        if options.prompts_file:
            draw_batch(task, prompts)
        elif axes:
            draw_grid(task, prompts[0], axes)
        else:
            draw(task, prompts)


def draw(task: Task, prompts: list[str]) -> None:
    """Draws --num-images pictures of each line, saves each as soon as it is done, and a sheet of them at the end."""
    from sdjax.image.sheets import contact_sheet

    out, seed, images, progress = task.options.out, task.options.seed, {}, Progress("step")

    def save(numbers: list[int], pictures: list) -> None:
        for i, image in zip(numbers, task.finish(pictures), strict=True):
            images[i] = image
            prompt = prompts[i // task.options.num_images]
            progress.say(save_next(image, out, seed + i, task.text(prompt, seed + i)))

    share = task.steps()
    task.draw(prompts, lambda done, total: progress(done * share, round(total * share)), finished=save)
    if len(images) > 1:
        text = task.text(prompts[0], seed, num_images=task.options.num_images)
        print(save_sheet(contact_sheet([images[i] for i in sorted(images)]), out, text))


def draw_grid(task: Task, prompt: str, axes: dict[str, list]) -> None:
    """Draws and saves one picture for each combination, and the labelled sheet."""
    from sdjax.commands.grid import cells, grid_sheet

    out, images, progress = task.options.out, [], Progress("picture")
    combinations = list(cells(axes))
    for changes in combinations:
        task.check([prompt], **changes)
    for i, changes in enumerate(combinations):
        part = lambda step, total, i=i: progress(i + step / total, len(combinations))
        images += task.draw([prompt], part, **changes)
        seed = changes.get("seed", task.options.seed)
        progress.say(save_next(images[i], out, seed, task.text(prompt, seed, changes)))
    text = task.text(prompt, task.options.seed, grid=task.options.grid)
    print(save_sheet(grid_sheet(axes, images), out, text))


def draw_batch(task: Task, prompts: list[str]) -> None:
    """Draws and saves --num-images pictures of each prompt of --prompts-file."""
    import jax
    import numpy as np

    from sdjax.commands.batch import run_batch
    from sdjax.devices.placement import chunk_size, copy_over
    from sdjax.devices.processes import agree, device_errors
    from sdjax.image.pixels import to_rgb
    from sdjax.model.value import digest
    from sdjax.tasks.options_sdxl import SDXL_OPTIONS

    sd, options = task.sd, task.options
    prompts = [prompt for prompt in prompts for _ in range(options.num_images)]
    task.check(prompts, num_images=1)
    large = (options.hires or 1) ** 2  # the second walk's pictures
    size, devices = chunk_size(len(prompts), int(task.height * task.width * large) // sd.config.vae.factor**2)
    settings = {name: getattr(options, name) for name in (*NAMES, "strength", "feather", "dtype")}
    for option in SDXL_OPTIONS:  # left out, as by runs before there were any
        if settings.get(option.name, option.default) == option.default:
            settings.pop(option.name, None)
    settings |= {"height": task.height, "width": task.width, "model": sd.config.name, "weights": digest(sd.params)}
    files = {name: getattr(options, name) for name in FILES if getattr(options, name) is not None}
    settings |= {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()}
    if "refiner" in task.arguments:
        settings |= {"refiner": digest(task.arguments["refiner"].params)}
    settings |= settings_of_controls(task.arguments, options)
    settings |= {} if options.noise_level is None else {"noise_level": options.noise_level}
    if "image" in task.arguments:
        settings |= {"image": digest(np.asarray(task.arguments["image"]))}
    if task.mask is not None:
        settings |= {"mask": digest(np.asarray(to_rgb(task.mask, "black")))}
    for name in ("mask_cells", "hires", "hires_strength", "hires_upscale", "hires_steps", "outpaint"):
        if getattr(options, name) != getattr(Options, name):  # else left out, as by runs before there were any
            settings |= {name: getattr(options, name)}
    settings |= {"embeddings": digest(dict(sd.embeddings), repr([*sd.embeddings]))} if sd.embeddings else {}
    settings |= {"safety_checker": digest(task.checker.params)} if task.checker else {}
    settings |= {"watermark": True} if options.watermark else {}
    task.sd = replace(sd, params=copy_over(sd.params, devices))
    made = run_batch(
        lambda prompts, seed, progress: task.draw(prompts, progress, seed=seed, num_images=1),
        lambda i: task.text(prompts[i], options.seed + i),
        prompts,
        options.out,
        settings,
        options.seed,
        options.batch_size or size,
        jax.process_index(),
        jax.process_count(),
        Progress("picture"),
    )
    print(f"{options.out}: {made} pictures drawn")
    with device_errors():
        agree(made)  # waits for the other processes: at its end JAX would wait for only 100 s
