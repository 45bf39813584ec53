"""The units of the ControlNet extension: alwayson_scripts {"controlnet": {"args": [unit, ...]}}."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sdjax.image import preprocess
from sdjax.image.pixels import to_rgb
from sdjax.web.fields import Field, number, text, truth
from sdjax.web.fields import read_fields as read
from sdjax.web.models import Models
from sdjax.web.pictures import read_picture
from sdjax.web.refusals import Refused

SCRIPT = "alwayson_scripts"
MOST = 4
MODES = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
    "0": "balanced",
    "1": "prompt",
    "2": "control",
}
MODULES = ("none", "canny")

UNIT = (
    Field("enabled", truth(), True),
    Field("module", text(100), "none"),
    Field("model", text(1000), "None"),
    Field("weight", number(-100, 100), 1.0),
    Field("guidance_start", number(0, 1), 0.0),
    Field("guidance_end", number(0, 1), 1.0),
    Field("threshold_a", number(), -1),
    Field("threshold_b", number(), -1),
    Field("pixel_perfect", truth(), False),
)


class Unit(NamedTuple):
    """A control of a request."""

    name: str
    path: Path
    module: str
    image: Image.Image | None
    weight: float
    interval: tuple[float, float]
    mode: str
    thresholds: tuple[float, float]

    @property
    def key(self) -> tuple:
        """What must be the same for pictures to be drawn together."""
        return str(self.path), self.weight, self.interval, self.mode

    @property
    def text(self) -> str:
        """What the picture's text says, as the extension writes it."""
        start, end = self.interval
        return (
            f"Module: {self.module}, Model: {self.name}, Weight: {self.weight:g}, Guidance Start: {start:g}, "
            f"Guidance End: {end:g}, Control Mode: {self.mode}"
        )

    def seen(self, own: Image.Image | None) -> Image.Image:
        """Returns the picture that the control sees. own: the one that the walk starts from. SdjaxError: no OpenCV."""
        image = self.image or own
        return preprocess.canny(image, *self.thresholds) if self.module == "canny" else image


def read_units(models: Models, scripts: Mapping[str, Any]) -> list[Unit]:
    """Returns the enabled units. Refused: what the server does not have."""
    script = next((value for name, value in scripts.items() if name.lower() == "controlnet"), None)
    if script is None:
        return []
    units = script.get("args") if isinstance(script, dict) else None
    if not isinstance(units, list) or not all(isinstance(unit, dict) for unit in units) or len(units) > MOST:
        raise Refused(f'{{"controlnet": {{"args": [unit, ...]}}}} of at most {MOST} units expected', SCRIPT)
    found = [read_unit(models, unit, f"{SCRIPT}.controlnet.args.{n}") for n, unit in enumerate(units)]
    return [unit for unit in found if unit is not None]


def read_unit(models: Models, given: Mapping[str, Any], place: str) -> Unit | None:
    """Returns a unit, or None for one that is off."""
    try:
        values = read(UNIT, given)
    except Refused as error:
        raise Refused(error.message, f"{place}.{error.field}") from None
    if not values["enabled"]:
        return None
    module = values["module"].lower()
    if module not in MODULES:
        raise Refused(f"one of {', '.join(MODULES)} expected", f"{place}.module")
    known = models.find_control(values["model"])
    if known is None:
        raise Refused("no such control; /controlnet/model_list lists them", f"{place}.model")
    mode = MODES.get(str(given.get("control_mode", "balanced") or 0).lower())
    if mode is None:
        right = "Balanced, My prompt is more important, or ControlNet is more important expected"
        raise Refused(right, f"{place}.control_mode")
    start, end = values["guidance_start"], values["guidance_end"]
    if not start < end:
        raise Refused("below guidance_end expected", f"{place}.guidance_start")
    image = given.get("image") or given.get("input_image")
    image = image.get("image") if isinstance(image, dict) else image
    picture = None if image is None else to_rgb(read_picture(image, f"{place}.image"))
    thresholds = tuple(
        value if value >= 0 else default
        for value, default in ((values["threshold_a"], 100), (values["threshold_b"], 200))
    )
    if thresholds[0] > thresholds[1]:
        raise Refused("not above threshold_b expected", f"{place}.threshold_a")
    return Unit(*known, module, picture, values["weight"], (start, end), mode, thresholds)
