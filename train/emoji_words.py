"""The words of the emoji dataset: the names of things, and the captions of pictures."""

import re

PLAIN, ASIDE = "{style} of {thing} on {background} background", "{style} of {thing} {where} on {background} background"

STYLES = {"3d": "a 3d render", "flat": "a flat emoji", "noto": "a noto emoji"}
NO_ARTICLE = {  # plurals need no entry
    "bacon", "badminton", "baguette bread", "bowling", "bread", "broccoli", "bubble tea", "building construction",
    "butter", "camping", "canned food", "construction", "cooked rice", "cooking", "coral", "curry rice", "dango",
    "dashing away", "dice", "dna", "field hockey", "fire", "fog", "garlic", "ginger root", "ice", "ice cream",
    "ice hockey", "lacrosse", "leafy green", "luggage", "mate", "meat on a bone", "money with wings", "mount fuji",
    "oden", "ping pong", "popcorn", "pouring liquid", "sake", "salt", "shaved ice", "soap", "soft ice cream",
    "spaghetti", "sushi", "tennis", "thread", "tokyo tower", "wood", "yarn", "zzz",
}  # fmt: skip
THE_ARTICLE = {"kaaba", "milky way", "statue of liberty"}
FORMS = {  # share of all pictures, caption, range of fill (see compose), shift to (x, y), adjective
    "plain": (0.54, PLAIN, (0.82, 0.96), (0, 0), ""),
    "alone": (0.06, "{name}", (0.82, 0.96), (0, 0), ""),
    "thing-background": (0.08, "{thing} on {background} background", (0.82, 0.96), (0, 0), ""),
    "style-background": (0.06, "{style} on {background} background", (0.82, 0.96), (0, 0), ""),
    "style-thing": (0.06, "{style} of {thing}", (0.82, 0.96), (0, 0), ""),
    "keywords": (0.06, "{style} of {keywords} on {background} background", (0.82, 0.96), (0, 0), ""),
    "small": (0.04, PLAIN, (0.45, 0.60), (0, 0), "small"),
    "big": (0.02, PLAIN, (1.05, 1.15), (0, 0), "big"),
    "left": (0.02, ASIDE.replace("{where}", "on the left"), (0.55, 0.65), (-1, 0), ""),
    "right": (0.02, ASIDE.replace("{where}", "on the right"), (0.55, 0.65), (1, 0), ""),
    "top": (0.02, ASIDE.replace("{where}", "at the top"), (0.55, 0.65), (0, -1), ""),
    "bottom": (0.02, ASIDE.replace("{where}", "at the bottom"), (0.55, 0.65), (0, 1), ""),
}


def with_article(words: str, adjective: str = "") -> str:
    """Returns words with their article: "a red apple", "a small owl", "the milky way".

    Plurals and substances get none: "cherries", "bread".
    """
    full = f"{adjective} {words}".strip()
    if words in THE_ARTICLE:
        return f"the {full}"
    head = re.split(r" (?:with|of|in|on|for|over|without|behind|blowing|holding|and crossbones)\b", words)[0]
    if words in NO_ARTICLE or (head.endswith("s") and not head.endswith(("ss", "us", "eros"))):
        return full
    return ("an " if re.match(r"(?!uni|eur|one-|ewe)[aeiou]|hour|x-|suv", full) else "a ") + full


def caption(form: str, thing: str, style: str, background: str, keywords: str = "") -> str:
    """Returns the caption of a picture of this form, a key of FORMS."""
    _, template, _, _, adjective = FORMS[form]
    described, ground = with_article(thing, adjective), with_article(background)
    return template.format(name=thing, thing=described, style=STYLES[style], background=ground, keywords=keywords)
