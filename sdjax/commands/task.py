"""The task that the options of `sdjax generate` name, with its arguments, its checks and its pictures' texts."""

import inspect
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sdjax.commands.conditions import BESIDE, asked, beside_of, small_picture, with_negative
from sdjax.commands.controls import OF_TASKS, load_controls, texts_of_controls
from sdjax.commands.generate_options import (
    NAMES,
    PARTS,
    PICTURES,
    SIDES,
    Options,
    canvas,
    read_sides,
    skips_of_picture,
)
from sdjax.commands.image_prompts import load_image_prompts, texts_of_image_prompts
from sdjax.commands.loras import files_of_loras, hashes
from sdjax.errors import SdjaxError, prefixed


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
        self.arguments |= load_controls(options, sd) | load_image_prompts(options)
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
        if options.strength is not None:
            self.arguments["strength"] = options.strength
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
        names = (*NAMES, *OF_TASKS, "image_prompt", "refiner")
        own = Arguments(**{name: arguments[name] for name in names if name in arguments})
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

        own = Arguments(**{name: self.arguments[name] for name in NAMES})
        default = inspect.signature(self.function).parameters.get("strength")
        strength = self.arguments.get("strength", default and default.default)
        walks = [(own, None if strength == 1 else strength)]
        if self.options.hires is not None:
            walks = [(own, None), (replace(own, steps=self.options.hires_steps or own.steps), strength)]
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

    @cached_property
    def loras(self) -> list[tuple[str, Path]]:
        """The names and files of --lora's LoRAs, looked up once: a hub id may ask the hub."""
        return files_of_loras(self.options.lora)

    def text(self, prompt: str, seed: int, changes: dict | None = None, **sheet) -> str:
        """Returns the parameters text of a picture, or of a `sheet` whose first one it is, with its own arguments."""
        from sdjax.tasks.parameters import describe

        prompt, negative = self.split(prompt)
        changes = (changes or {}) | ({} if negative is None else {"negative_prompt": negative})
        files = (*PICTURES, *PARTS, "config", "refiner", "embedding", "lora", "safety_checker")
        others = (*files, "noise_level", "watermark", "dtype", "hires", "hires_upscale", "hires_steps", "outpaint")
        others = {name: getattr(self.options, name) for name in others} | {"num_images": 1} | sheet
        others |= texts_of_controls(self.options) | texts_of_image_prompts(self.options)
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
            **{"Lora hashes": hashes(self.loras, prompt, self.options.lora_folder, self.options.syntax)},
        )
