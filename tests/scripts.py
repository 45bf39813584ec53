"""The scripts as one types them, in a folder with a narrow model and a few pictures (fixtures `place`, `script`)."""

from dataclasses import replace
from pathlib import Path

from tests.narrow import NARROW

ROOT = Path(__file__).parent.parent
EMOJI64 = ROOT / "tests" / "data" / "emoji64"  # the bundled model of earlier packages, 64 px
CONFIG = replace(
    NARROW,
    name="model",
    size=8,
    text=replace(NARROW.text, layers=1),
    vae=replace(NARROW.vae, channels=(8,), blocks=1),
    unet=replace(NARROW.unet, channels=(16,), blocks=1, attention=(False,), heads=(2,)),
)
GENERATE = {"--model": "model", "--out": "out"}
TRAIN = {"--model": "model", "--data": "pictures", "--out": "refused", "--batch-size": 8}


def arguments(name, defaults, changes):
    pairs = [(flag, str(value)) for flag, value in (defaults | changes).items() if value is not None]
    return [*(["a red apple"] if name.endswith("generate.py") else []), *[word for pair in pairs for word in pair]]
