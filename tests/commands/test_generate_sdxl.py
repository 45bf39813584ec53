"""`sdjax generate` with SDXL: sizes, a refiner, parts of their own, and what the pictures' text says of them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.families.table import family_of
from sdjax.image.metadata import read_parameters
from sdjax.image.parameters import parse_parameters
from sdjax.image.png import save_png
from sdjax.text.bpe import train_bpe
from tests.kinds import REFINER, SDXL
from tests.narrow import random_params
from tests.text.test_tokenizer import captions

pytestmark = pytest.mark.usefixtures("quick_compile")
TOWER = {"vocab_size": 580, "bos_token": 578, "eos_token": 579, "pad_token": 579, "layers": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders `base` and `refiner`, and `own`, a folder of another base."""
    folder = tmp_path_factory.mktemp("sdxl")
    tokenizer = train_bpe(captions(), 580, folder / "tokenizer")
    for name, config, seed in (("base", SDXL, 0), ("refiner", REFINER, 0), ("own", SDXL, 5)):
        towers = {part: replace(tower, **TOWER) for part in ("text", "text_2") if (tower := getattr(config, part))}
        config = replace(config, name=name, **towers)
        params = {part: random_params(getattr(config, part), seed) for part in family_of(config).parts}
        sdjax.save(sdjax.StableDiffusion(config, params, tokenizer), folder / name)
    return folder


def drawn(folder):
    (path,) = sorted(folder.glob("0*.png"))
    return np.asarray(Image.open(path)), read_parameters(path)


def test_what_the_flags_say_is_in_the_text_and_comes_back(script, models, tmp_path, capsys):
    asked = ["a red apple", "--model", models / "base", "--steps", 3, "--sampler", "euler"]
    flags = [
        "--refiner",
        models / "refiner",
        "--refiner-start",
        0.5,
        "--unet",
        models / "own",
        "--prompt-2",
        "an owl, red",
    ]
    flags += ["--original-size", 30, 40, "--crop", 3, 5, "--negative-crop", 1, 2, "--aesthetic-score", 4.5]
    flags += ["--zero-negative", "False", "--clip-skip", 2]
    assert script("sample/generate.py", *asked, *flags, "--out", tmp_path / "a") == 0
    pixels, text = drawn(tmp_path / "a")
    fields = parse_parameters(text)[2]
    said = {name: fields[name] for name in ("Prompt 2", "Original size", "Crop", "Negative crop", "Aesthetic score")}
    assert said == {
        "Prompt 2": "an owl, red",
        "Original size": "30 40",
        "Crop": "3 5",
        "Negative crop": "1 2",
        "Aesthetic score": "4.5",
    }
    assert fields["Refiner"] == str(models / "refiner") and fields["Refiner switch at"] == "0.5"
    assert fields["Zero negative"] == "False" and fields["UNet"] == str(models / "own")
    assert "Clip skip" not in fields and fields["SDXL clip skip"] == "2"
    assert script("sample/generate.py", "--from", tmp_path / "a" / "00000-seed0.png", "--out", tmp_path / "b") == 0
    np.testing.assert_array_equal(drawn(tmp_path / "b")[0], pixels)
    base, refiner = sdjax.load(models / "base", unet=models / "own"), sdjax.load(models / "refiner")
    sizes = {"original_size": (30, 40), "crop": (3, 5), "negative_crop": (1, 2), "aesthetic_score": 4.5}
    more = {"refiner": refiner, "refiner_start": 0.5, "prompt_2": "an owl, red", "zero_negative": False, "clip_skip": 2}
    (image,) = sdjax.txt2img(base, "a red apple", steps=3, sampler="euler", **sizes, **more)
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_web_ui_s_clip_skip_is_not_used(script, models, tmp_path, capsys):
    path = save_png(
        Image.new("RGB", (16, 16)), tmp_path / "web.png", "an owl\nSteps: 2, Seed: 1, Size: 16x16, Clip skip: 2"
    )
    for name, more in (("a", ["--from", path]), ("b", ["an owl", "--steps", 2, "--seed", 1])):
        assert script("sample/generate.py", "--model", models / "base", *more, "--out", tmp_path / name) == 0
    assert "not used: Clip skip: 2, SDXL has its own" in capsys.readouterr().err
    np.testing.assert_array_equal(drawn(tmp_path / "a")[0], drawn(tmp_path / "b")[0])


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--refiner-start", 0.5], "--refiner-start: needs a refiner"),
        (["--refiner", "nowhere"], "--refiner: nowhere: no such folder or file"),
        (["--aesthetic-score", 3], "--aesthetic-score 3.0: base takes none, SDXL's refiner does"),
        (["--target-size", 0, 16], "--target-size (0, 16): two whole numbers from 1 on, height or top first"),
        (["--unet", "nowhere"], "--unet nowhere: no such file or folder"),
        (["--crop", 3], "--crop"),
    ],
)
def test_refusals(script, models, tmp_path, capsys, flags, said):
    asked = ["an owl", "--model", models / "base", "--steps", 1, "--out", tmp_path / "out"]
    assert script("sample/generate.py", *asked, *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert said in lines[-1] and "Traceback" not in "\n".join(lines)
