"""The syntax of prompts, as AUTOMATIC1111's web UI reads them."""

import math
import re
from typing import NamedTuple

from sdjax.errors import SdjaxError

SYNTAXES = ("a1111", "plain")

LIMIT = 1000.0  # larger weights are cut to this, since float32 has to hold their products

TOKEN = re.compile(
    r"""\\(?P<escaped>[\\()\[\]]?) | :\s*(?P<weight>[+-]?[.0-9]+)\s*\) | (?P<bracket>[()\[\]])
                       | (?P<text>[^\\()\[\]:]+ | :)""",
    re.X,
)

BREAK, AND = re.compile(r"\bBREAK\b"), re.compile(r"\bAND\b")

MIX = re.compile(r":\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*$")

OPENING = {")": "(", "]": "["}

FACTOR = {"(": 1.1, "[": 1 / 1.1}

#: Patterns that mean something to the web UI but are text here -> the note about them.
FOREIGN = {
    r"(?<!\\)\[[^\[\]|]*\|[^\[\]]*\]": "alternation [a|b] is read as text",
    r"(?<!\\)\[[^\[\]]*:\s*[.0-9]+\s*\]": "prompt editing [from:to:when] is read as text",
    r"<(?:lora|lyco):[^<>]*>": "LoRAs are loaded by the prompts of tasks alone, <lora:...> is read as text here",
    r"<hypernet:[^<>]*>": "hypernetworks are not loaded, <hypernet:...> is read as text",
}


TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")


class Tag(NamedTuple):
    """A LoRA that a prompt names, <lora:name:te:unet>."""

    name: str
    weight: float  # of the UNet
    text_weight: float


def cut_tags(prompt: str) -> tuple[str, list[Tag]]:
    """Returns (a prompt without its tags of LoRAs, these), as the web UI's extra_networks_lora.py reads them:
    <lora:name:te:unet> or <lora:name:te=0.5:unet=0.8>; te is 1 if left out, unet is te.

    SdjaxError: a tag without a name, with something else than numbers, or with more.
    """
    return TAG.sub("", prompt), [read_tag(match[0], match[1]) for match in TAG.finditer(prompt)]


def read_tag(whole: str, inside: str) -> Tag:
    name, *values = (part.strip() for part in inside.split(":"))
    found: dict[str, float] = {}
    for place, value in enumerate(values):
        key, _, number = value.rpartition("=")
        key = key.strip() or ("te", "unet", "dyn")[min(place, 2)]
        try:
            found[key] = float(number)
        except ValueError:
            found[key] = math.nan
        if key not in ("te", "unet") or not math.isfinite(found[key]):
            raise SdjaxError(f"prompt: {whole[:80]}: numbers te and unet expected, as <lora:name:0.5:0.8>")
    if not name:
        raise SdjaxError(f"prompt: {whole[:80]}: has no name, as <lora:name:0.8> has")
    text_weight = found.get("te", 1.0)
    return Tag(name, found.get("unet", text_weight), text_weight)


class Piece(NamedTuple):
    """A piece of a prompt, all of one weight."""

    text: str | None  # None is a BREAK
    weight: float


def parse(prompt: str) -> tuple[list[Piece], list[str]]:
    """Returns (the pieces of a prompt with their weights, notes on what was not understood). It accepts every string.

    AND is text here: `compose` divides a prompt at AND before.
    """
    pieces: list[list] = []  # [text, weight]
    opened: dict[str, list[int]] = {"(": [], "[": []}
    notes = []

    def close(bracket: str, factor: float) -> None:
        for piece in pieces[opened[bracket].pop() :]:
            piece[1] *= factor

    for match in TOKEN.finditer(prompt):
        kind, found = match.lastgroup, match[match.lastgroup]
        if kind == "bracket" and found in opened:
            opened[found].append(len(pieces))
        elif kind == "bracket" and opened[OPENING[found]]:
            close(OPENING[found], FACTOR[OPENING[found]])
        elif kind == "weight" and opened["("]:
            try:
                close("(", float(found))
            except ValueError:
                notes.append(f"{found} is not a number; it is read as text")
                pieces.append([match[0][:-1], 1.0])
                close("(", FACTOR["("])
        elif kind == "text":
            for i, text in enumerate(BREAK.split(found)):
                pieces += [[None, 1.0], [text, 1.0]] if i else [[text, 1.0]]
        else:
            if kind != "escaped":
                notes.append(f"{match[0][-1]} closes nothing; it is read as text")
            pieces.append([match[0] if kind == "weight" else found, 1.0])
    for bracket, places in opened.items():
        if places:
            notes.append(f"{bracket} is not closed, so it reaches to the end (\\{bracket} is the character itself)")
        while places:
            close(bracket, FACTOR[bracket])

    merged: list[Piece] = []
    for text, weight in pieces:
        if not abs(weight) <= LIMIT:
            notes.append(f"a weight above {LIMIT:g} is cut to it")
            weight = math.copysign(LIMIT, weight)
        last = merged[-1] if merged else None
        if text is not None and last and last.text is not None and last.weight == weight:
            merged[-1] = Piece(last.text + text, weight)
        elif text != "":
            merged.append(Piece(text, weight))
    return merged, notes


def compose(prompt: str) -> list[tuple[str, float]]:
    """Returns the prompts that AND joins, with their weights: "a AND b:0.7" -> [("a", 1.0), ("b", 0.7)]."""
    texts = AND.split(prompt)
    if len(texts) == 1:
        return [(prompt, 1.0)]
    parts = []
    for text in texts:
        match = MIX.search(text)
        weight = float(match[1]) if match else 1.0
        weight = math.copysign(min(abs(weight), LIMIT), weight)
        parts.append(((text[: match.start()] if match else text).strip(), weight))
    return parts
