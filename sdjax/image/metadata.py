"""The settings in a picture's file: the text of a PNG, the comment of a JPEG or WebP, the graph of a ComfyUI PNG."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdjax.errors import SdjaxError
from sdjax.image.parameters import parameters_text

EXIF, COMMENT = 0x8769, 0x9286  # Exif 2.32: the IFD of EXIF, and UserComment in it
CODES = 8  # bytes at the comment's beginning that name its encoding


def read_parameters(path: str | Path) -> str:
    """Returns the `parameters` text of a picture file, or what a ComfyUI graph in it says, in that form.

    SdjaxError: names the file if it has none or is no picture.
    """
    from PIL import Image  # imported late: the command line needs other files of this folder at once

    try:
        with Image.open(path) as image:
            text = found_in(image)
    except Exception as error:  # decoders raise what they like
        reason = getattr(error, "strerror", None) or error
        raise SdjaxError(f"{path}: not a readable picture ({reason})") from None
    if not text.strip():
        raise SdjaxError(f"{path}: no `parameters` text there; a picture of sample/generate.py or of a web UI has one")
    return text


def found_in(image: Any) -> str:
    """Returns the text of an open picture, or "" if it has none."""
    if "parameters" not in image.info:
        image.load()  # a PNG may have its text after its pixels
    text = image.info.get("parameters")
    if isinstance(text, str) and text.strip():
        return in_utf8(text)
    comment = image.getexif().get_ifd(EXIF).get(COMMENT, b"")
    if isinstance(comment, str):
        comment = comment.encode("latin-1", "ignore")
    if text := user_comment(comment):
        return text
    graph = image.info.get("prompt")
    return of_graph(in_utf8(graph)) if isinstance(graph, str) else ""


def in_utf8(text: str) -> str:
    """Returns the text of a PNG's tEXt or zTXt chunk, which should be Latin-1, as the UTF-8 that many programs write.

    That of an iTXt chunk stays: what is UTF-8 there is no Latin-1.
    """
    from PIL.PngImagePlugin import iTXt

    if isinstance(text, iTXt):
        return str(text)
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def user_comment(comment: bytes) -> str:
    """Returns the text of EXIF's UserComment. UTF-16 is read in the byte order that its zeros show, or its mark."""
    code, body = comment[:CODES], comment[CODES:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace").rstrip("\0")
        little = body[1::2].count(0) > body[::2].count(0)  # Latin letters have a zero in the high byte
        return body.decode("utf-16-le" if little else "utf-16-be", "replace").rstrip("\0")
    if code in (b"ASCII\0\0\0", bytes(CODES)):
        return body.decode("utf-8", "replace").strip("\0")
    return comment.decode("utf-8", "replace").strip("\0")


# ---- ComfyUI


def of_graph(text: str) -> str:
    """Returns what a ComfyUI graph (the JSON in a PNG's `prompt`) says of its first KSampler, as `parameters` text.

    "": it is no such graph. What is computed in the graph and not written there is left out.
    """
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    nodes = nodes if isinstance(nodes, dict) else {}
    given = {key: node["inputs"] for key, node in nodes.items() if has_inputs(node)}
    inputs = lambda key: given.get(str(key), {})
    samplers = [key for key in given if str(nodes[key].get("class_type")).startswith("KSampler")]
    if not samplers:
        return ""
    own = inputs(min(samplers, key=lambda key: (len(key), key)))
    size, scheduler = follow(inputs, own.get("latent_image"), "width"), own.get("scheduler")
    height = follow(inputs, own.get("latent_image"), "height")
    prompt, negative = (follow(inputs, own.get(side), "text") for side in ("positive", "negative"))
    model = follow(inputs, own.get("model"), "ckpt_name")
    settings = {
        "Steps": own.get("steps"),
        "Sampler": own.get("sampler_name"),
        "Schedule_type": scheduler,
        "CFG_scale": own.get("cfg"),
        "Seed": own.get("seed", own.get("noise_seed")),
        "Size": f"{size}x{height}" if size and height else None,
        "Model": Path(model).stem if isinstance(model, str) else None,
        "Denoising_strength": own.get("denoise") if own.get("denoise") not in (1, None) else None,
    }
    plain = {name: value for name, value in settings.items() if isinstance(value, (str, int, float))}
    lines = lambda value: value.strip() if isinstance(value, str) else ""
    return parameters_text(lines(prompt), lines(negative), **plain)


def has_inputs(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def follow(inputs: Callable[[Any], Mapping[str, Any]], link: Any, name: str, depth: int = 32) -> Any:
    """Returns the input `name` of the node that a link [node, output] leads to, or of one before it; None: there is
    none."""
    if not isinstance(link, list) or not link or not depth:
        return None
    found = inputs(link[0])
    if name in found:
        value = found[name]
        return follow(inputs, value, name, depth - 1) if isinstance(value, list) else value
    values = (follow(inputs, other, name, depth - 1) for other in found.values())
    return next((value for value in values if value is not None), None)
