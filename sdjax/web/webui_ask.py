"""The web UI's txt2img and img2img requests -> jobs for the scheduler."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError, log
from sdjax.image.pixels import pil_to_pixels, to_rgb
from sdjax.model.value import StableDiffusion
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.parameters import understand
from sdjax.web import inpainting
from sdjax.web.ask import Ask, Hires, large_sides
from sdjax.web.control_units import Unit, read_units
from sdjax.web.fields import arguments, names_of, read_fields
from sdjax.web.job import Job
from sdjax.web.models import Models
from sdjax.web.pictures import read_picture, resized
from sdjax.web.refusals import Refused, in_fields
from sdjax.web.samplers import find_sampler
from sdjax.web.webui_fields import (
    IMG2IMG,
    MOST_PICTURES,
    SEEDS,
    SETTINGS,
    TXT2IMG,
    others_of,
    settings_of_text,
    texts_of,
)

RANDOM = 4294967294  # seeds of -1 are below it, as the web UI's


class Wanted:
    """One request, checked as far as no model is needed.

    values: of the fields, as they are echoed. settings: those that hold for it, by the names of SETTINGS.
    """

    def __init__(self, models: Models, settings: Mapping[str, Any], given: Mapping[str, Any], image: bool, most: int):
        table = IMG2IMG if image else TXT2IMG
        self.models, self.most, self.table = models, most, table
        self.values = self.echo = read_fields(table, given)
        self.others: dict[str, Any] = {}  # options that no field sets
        if self.values["infotext"]:
            found, rest = understand_text(self.values["infotext"])
            self.values = read_fields(table, {**given, **texts_of(found, dict(given))})
            self.others, settings = others_of(found), {**settings, **settings_of_text(found)}
            if title := next((t for name in ("Model hash", "Model") if (t := models.find(rest.get(name, "")))), None):
                settings = {**settings, "sd_model_checkpoint": title}
        values = self.values
        refuse_scripts(values)
        self.settings, self.model = self.own_settings(settings, values)
        field = "sampler_name" if values["sampler_name"] else "sampler_index"
        self.sampler = find_sampler(values[field] or "Euler", values["scheduler"], field)
        self.count = values["batch_size"] * values["n_iter"]
        if self.count > MOST_PICTURES:
            raise Refused(f"batch_size times n_iter at most {MOST_PICTURES} expected", "n_iter")
        self.seed = drawn(values["seed"], self.count)
        self.subseed = drawn(values["subseed"], self.count)
        for name, seed in (("seed", self.seed), ("subseed", self.subseed)):
            if seed + self.count > SEEDS:
                raise Refused(f"at most {SEEDS - self.count} expected for {self.count} pictures", name)
        self.units = read_units(models, values["alwayson_scripts"])
        self.images = self.read_images() if image else None
        self.mask = read_picture(values["mask"], "mask") if image and values["mask"] else None
        for unit in self.units:
            if unit.image is None and self.images is None:
                raise Refused("a picture for each control expected", "alwayson_scripts")

    def own_settings(self, settings: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Returns the settings of this request and the title of its model."""
        own = values["override_settings"]
        try:
            found = read_fields(SETTINGS, {field.name: own.get(field.name) for field in SETTINGS})
        except Refused as error:
            raise Refused(error.message, f"override_settings.{error.field}") from None
        found = {name: settings.get(name) if own.get(name) is None else value for name, value in found.items()}
        model = found["sd_model_checkpoint"]
        title = self.models.current if not model else self.models.find(model)
        if title is None:
            field = "override_settings.sd_model_checkpoint"
            raise Refused("no such model; sd-models lists them", field, 404, "model_not_found")
        return found, title

    def read_images(self) -> list[Image.Image]:
        """Returns the pictures of init_images as RGB."""
        given = self.values["init_images"]
        if not given:
            raise Refused("a list of one picture, or of one for each of batch_size, expected", "init_images")
        if len(given) not in (1, self.values["batch_size"]):
            raise Refused(f"one picture, or one for each of batch_size, expected, not {len(given)}", "init_images")
        return [to_rgb(read_picture(one, "init_images")) for one in given]

    def job(self) -> Job:
        name = self.values["force_task_id"] or f"task({secrets.token_hex(8)})"
        names = names_of(self.table) | {"clip_skip": "override_settings", "control": "alwayson_scripts"}
        names |= {"model": "override_settings.sd_model_checkpoint"} | dict.fromkeys(self.others, "infotext")
        return Job(self.model, self.asks, name, "sdapi", names)

    def asks(self, sd: StableDiffusion) -> list[Ask]:
        """Returns the pictures of the request."""
        values = self.values
        width, height = (values[side] or sd.config.size for side in ("width", "height"))
        self.check_size(sd, width, height)
        from_picture = self.images is not None
        hires = None if from_picture or not values["enable_hr"] else self.hires(sd, width, height)
        found, each = [], self.pictures(width, height) if from_picture else [None]
        options = self.others | arguments(self.table, values) | self.sampler | {"width": width, "height": height}
        options |= {"lora_folder": self.models.loras, "clip_skip": self.settings["CLIP_stop_at_last_layers"] or 1}
        options["eta"] = self.eta()
        steered = [self.controlled(sd, painted) if self.units else {} for painted in each]
        for number in range(self.count):
            varied = values["subseed_strength"] > 0
            own = {"seed": self.seed + (0 if varied else number), "variation_seed": self.subseed + number}
            painted = each[number % len(each)]
            with in_fields(names_of(self.table) | dict.fromkeys(self.others, "infotext")):
                task = TaskOptions(**options | own | steered[number % len(each)])
            asked = Ask(
                values["prompt"], task, hires=hires, controls=tuple(unit.key for unit in self.units), texts=self.texts()
            )
            found.append(asked if painted is None else self.from_picture(asked, painted))
        return found

    def check_size(self, sd: StableDiffusion, width: int, height: int) -> None:
        """Refused: a side that the model does not take, or more pixels than the server draws."""
        with in_fields({"width": "width", "height": "height"}):
            for name, side in (("width", width), ("height", height)):
                sd.config.check_side(name, side)
        if width * height > self.most:
            raise Refused(f"width times height at most {self.most} expected", "width")

    def hires(self, sd: StableDiffusion, width: int, height: int) -> Hires:
        """Returns the second walk of a request."""
        values, target = self.values, None
        x, y = values["hr_resize_x"], values["hr_resize_y"]
        if x or y:
            even = lambda side: 2 * round(side / 2)  # a side that is not given is ours to round
            x, y = x or even(y * width / height), y or even(x * height / width)
            target = (y, x)
        scale = values["hr_scale"] if target is None else max(x / width, y / height)
        for field, side in (("hr_resize_x", x), ("hr_resize_y", y)):
            if target is not None and (scale < 1 or side % 2):
                wrong = "an even side expected" if side % 2 else "a side that is not below the first walk's expected"
                raise Refused(wrong, field)
        name = (values["hr_upscaler"] or "Latent").lower()
        if not name.startswith("latent") and name not in ("lanczos", "none"):
            raise Refused("Latent, Lanczos or None expected", "hr_upscaler")
        if not values["denoising_strength"]:
            raise Refused("a number above 0 expected", "denoising_strength")
        upscale = "latents" if name.startswith("latent") else "pixels"
        steps = values["hr_second_pass_steps"] or None
        found = Hires(scale, values["denoising_strength"], upscale, steps, target)
        factor = sd.config.vae.factor
        sides = large_sides(sd, (height // factor, width // factor, 0), found)
        if sides[0] * sides[1] * factor**2 > self.most:
            raise Refused(f"a picture of at most {self.most} pixels expected", "hr_scale")
        if target in (None, (sides[0] * factor, sides[1] * factor)):
            found = found._replace(target=None)
        return found

    def eta(self) -> float | None:
        """Returns eta, or None for a sampler that takes none: clients send it with every one."""
        return None if samplers[self.sampler["sampler"]].eta is None else self.values["eta"]

    def pictures(self, width: int, height: int) -> list[inpainting.Painted]:
        """Returns the pictures that the walks start from, with their masks."""
        values, size, found = self.values, (width, height), []
        for image in self.images:
            if self.mask is None:
                found.append(inpainting.Painted(resized(image, size, values["resize_mode"]), None, None))
                continue
            found.append(
                inpainting.prepare(
                    image,
                    self.mask,
                    size,
                    invert=values["inpainting_mask_invert"],
                    fill=values["inpainting_fill"],
                    blur=values["mask_blur"],
                    mode=values["resize_mode"],
                    whole=not values["inpaint_full_res"],
                    padding=values["inpaint_full_res_padding"],
                )
            )
        return found

    def from_picture(self, ask: Ask, painted: inpainting.Painted) -> Ask:
        """Returns an Ask that starts from a picture."""
        values, hole = self.values, None
        if not values["denoising_strength"]:
            raise Refused("a number above 0 expected", "denoising_strength")
        if painted.mask is not None and values["inpainting_fill"] >= inpainting.NOISE:
            hole = 1.0 if values["inpainting_fill"] == inpainting.NOISE else 0.0
        return replace(
            ask,
            pictures=pil_to_pixels(painted.image),
            masks=painted.mask,
            feather=values["mask_blur"] if painted.mask is not None else 0.0,
            strength=values["denoising_strength"],
            hole=hole if painted.mask is not None and values["denoising_strength"] < 1 else None,
            after=painted.after,
        )

    def controlled(self, sd: StableDiffusion, painted: inpainting.Painted | None) -> dict[str, Any]:
        """Returns the options of the request's controls."""
        own = None if painted is None else painted.image
        with in_fields(dict.fromkeys(("control", "low", "high", "canny", "channels", "picture"), "alwayson_scripts")):
            return {
                "control": [self.net(unit, sd) for unit in self.units],
                "control_image": [unit.seen(own) for unit in self.units],
                "control_scale": [unit.weight for unit in self.units],
                "control_interval": [unit.interval for unit in self.units],
                "control_mode": [unit.mode for unit in self.units],
            }

    def net(self, unit: Unit, sd: StableDiffusion) -> Any:
        """Returns the network of a control. Refused: its file cannot be read, or it does not fit the model."""
        try:
            return self.models.control(unit.path, sd)
        except SdjaxError as error:
            log.warning("control %s", error)
            raise Refused("a control that can be read and fits this model expected", "alwayson_scripts") from None

    def texts(self) -> dict[str, str]:
        """Returns the fields of the text that say what the library's own do not."""
        return {f"ControlNet {n}": unit.text for n, unit in enumerate(self.units)}


def understand_text(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the arguments of a `parameters` text, and its other fields. Refused: it is none."""
    try:
        return understand(text)
    except SdjaxError:
        raise Refused("the parameters text of a picture expected", "infotext") from None


def drawn(seed: int, count: int) -> int:
    """Returns a seed, for -1 a random one."""
    return secrets.randbelow(RANDOM - count) if seed == -1 else seed


def refuse_scripts(values: Mapping[str, Any]) -> None:
    """Refused: what the web UI's extensions would do and this server does not."""
    if values["script_name"] and values["script_name"] != "None":
        raise Refused("there are no scripts here; leave it out", "script_name")
    for name in ("restore_faces", "tiling"):
        if values[name]:
            raise Refused("there is no such thing here; false expected", name)
    for name, script in values["alwayson_scripts"].items():
        if name.lower() != "controlnet" and script not in ({}, {"args": []}):
            raise Refused("controlnet alone is taken", "alwayson_scripts")
