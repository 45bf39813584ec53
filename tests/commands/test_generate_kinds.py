"""sample/generate.py with models of layouts, maps and nothing: flags, files of lines, --from, refusals in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.weights import single
from tests.kinds import BESIDE, DEPTH, KINDS, model

pytestmark = pytest.mark.usefixtures("quick_compile")

BOX, OTHER = [1, 0.0, 0.25, 0.5, 1.0], [0, 0.5, 0.0, 1.0, 0.5]


@pytest.fixture
def models(place, monkeypatch):
    monkeypatch.setattr(single, "CANDIDATES", (*single.CANDIDATES, *KINDS.values(), *BESIDE.values()))
    for kind, config in (KINDS | BESIDE).items():
        if kind not in ("classes", "text-map"):
            sdjax.save(model(config), place / f"{kind}.safetensors")
    tokenizer = sdjax.load(place / "model").tokenizer
    text = replace(DEPTH.text, vocab_size=580, bos_token=578, eos_token=579, pad_token=579)
    sdjax.save(replace(model(replace(DEPTH, text=text)), tokenizer=tokenizer), place / "depth")
    np.save(place / "depth.npy", np.arange(512.0).reshape(16, 32))
    Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32)).save(place / "depth.png")
    (place / "one.json").write_text(json.dumps([BOX]))
    (place / "two.json").write_text(json.dumps([[BOX, OTHER], []]))
    (place / "layouts.txt").write_text(f"{json.dumps([OTHER])}\n[]\n")
    ids = np.arange(512, dtype=np.uint8).reshape(16, 32) // 128
    Image.fromarray(ids).save(place / "map.png")
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.putpalette([0, 200, 0] * 256)
    palette.save(place / "palette.png")


def draw(script, place, out, *arguments):
    assert script("sample/generate.py", "--out", out, "--steps", 2, "--no-cache", *arguments) == 0
    pictures = sorted((place / out).glob("0*.png"))
    return {path.name: Image.open(path).text["parameters"].splitlines() for path in pictures}


def test_layouts(script, place, models):
    of = "--model", "layout.safetensors"
    one = draw(script, place, "one", *of, "--layout", "one.json", "--num-images", 2)
    assert [json.loads(text[0]) for text in one.values()] == [[BOX], [BOX]]
    two = draw(script, place, "two", *of, "--layout", "two.json")
    assert [json.loads(text[0]) for text in two.values()] == [[BOX, OTHER], []]
    draw(script, place, "again", "--from", "two/00000-seed0.png")
    assert (place / "again/00000-seed0.png").read_bytes() == (place / "two/00000-seed0.png").read_bytes()
    batch = draw(script, place, "batch", *of, "--prompts-file", "layouts.txt")
    assert [json.loads(text[0]) for text in batch.values()] == [[OTHER], []]


def test_maps_and_nothing(script, place, models):
    of = "--model", "map.safetensors"
    (text,) = draw(script, place, "map", *of, "--map", "map.png").values()
    assert text[0] == "map.png" and "Size: 32x16" in text[1] and "CFG scale: 1," in text[1]
    draw(script, place, "palette", *of, "--map", "palette.png")
    pixels = lambda folder: np.asarray(Image.open(place / folder / "00000-seed0.png"))
    np.testing.assert_array_equal(pixels("palette"), pixels("map"))
    draw(script, place, "again-map", "--from", "map/00000-seed0.png")
    np.testing.assert_array_equal(pixels("again-map"), pixels("map"))
    found = draw(script, place, "nothing", "--model", "nothing.safetensors", "--num-images", 2)
    assert [text[0][:6] for text in found.values()] == ["Steps:", "Steps:"] or len(found) == 2
    draw(script, place, "nothing2", "--from", "nothing/00001-seed1.png")


def test_models_without_text_that_take_pictures(script, place, models):
    (text,) = draw(script, place, "sr", "--model", "sr.safetensors", "--lowres", "map.png").values()
    assert "Size: 64x32" in text[-1] and "Small picture: map.png" in text[-1]
    draw(script, place, "sr-again", "--from", "sr/00000-seed0.png")
    assert (place / "sr-again/00000-seed0.png").read_bytes() == (place / "sr/00000-seed0.png").read_bytes()
    (text,) = draw(script, place, "out", "a cat", "--model", "depth", "--depth", "depth.npy").values()
    assert "Size: 32x16" in text[-1]
    mask = "--init-image", "map.png", "--mask", "map.png"
    draw(script, place, "inpaint", "--model", "inpaint.safetensors", *mask)
    (text,) = draw(script, place, "variations", "--model", "variations.safetensors", "--image", "map.png").values()
    assert text[0] == "map.png"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["--model", "layout.safetensors"],
            "--layout: tiny-layout takes it in place of a prompt, as --layout boxes.json",
        ),
        (["--model", "layout.safetensors", "a cat"], "prompt 'a cat': tiny-layout takes layouts"),
        (["--model", "layout.safetensors", "--layout", "map.png"], "--layout map.png: not readable JSON"),
        (["--model", "layout.safetensors", "--layout", "one.json", "a cat"], "--layout: instead of a prompt"),
        (["--model", "layout.safetensors", "--layout", "bad.json"], "--layout[0][0]: label 9, a whole number"),
        (["--model", "layout.safetensors", "--map", "map.png"], "--map map.png: tiny-layout takes none, give --layout"),
        (["--model", "map.safetensors", "--map", "no.png"], "--map no.png: no such picture"),
        (["--model", "map.safetensors", "--map", "colour.png"], "--map colour.png: mode RGB: ids are grey values"),
        (["--model", "map.safetensors", "--map", "high.png"], "--map: id 9, 0 to 4 expected"),
        (["--model", "map.safetensors", "--map", "map.png", "--width", "16"], "--width 16"),
        (["--model", "nothing.safetensors", "a cat"], "prompt 'a cat': tiny-nothing takes none"),
        (["--model", "nothing.safetensors", "--guidance-scale", "2"], "--guidance-scale 2.0: tiny-nothing has no null"),
        (["--model", "nothing.safetensors", "--grid", "guidance_scale=1,3"], "--guidance-scale 3.0: tiny-nothing has"),
        (
            ["--model", "nothing.safetensors", "--map", "map.png"],
            "--map map.png: tiny-nothing takes none, give nothing",
        ),
        (["--model", "nothing.safetensors", "--config", "tiny"], "--config 'tiny': one of"),
        (["map.png", "--model", "map.safetensors", "--map", "no.png"], "--map no.png: stands for the prompt, not with"),
        (["--model", "sr.safetensors", "--lowres", "map.png", "--init-image", "map.png"], "--init-image: not with"),
        (["--model", "sr.safetensors"], "--lowres: tiny-sr takes it in place of a prompt, as --lowres FILE"),
        (["--model", "sr.safetensors", "--lowres", "no.png"], "--lowres no.png: no such picture"),
        (["--model", "sr.safetensors", "--lowres", "map.png", "a cat"], "prompt 'a cat': tiny-sr takes none"),
        (["--model", "sr.safetensors", "--lowres", "map.png", "--width", "48"], "--width 48: None, it follows"),
        (["--model", "variations.safetensors"], "--image: tiny-variations takes it in place of a prompt"),
        (["--depth", "depth.npy", "a cat"], "--depth depth.npy: emoji takes none, give a prompt"),
        (["a cat", "--noise-level", "3"], "--noise-level 3: needs --lowres or --image"),
        (
            ["--model", "sr.safetensors", "--lowres", "map.png", "--noise-level", "20"],
            "--noise-level 20: tiny-sr takes",
        ),
        (
            ["--model", "variations.safetensors", "--image", "map.png", "--noise-level", "0"],
            "--noise-level 0: tiny-variations takes none",
        ),
        (["--layout", "one.json"], "--layout one.json: emoji takes none, give a prompt"),
        (["--layout", "one.json", "--map", "map.png"], "--map: instead of --layout, not beside it"),
        (
            ["--model", "inpaint.safetensors"],
            "--mask: tiny-inpaint is an inpainting model, give --init-image and --mask",
        ),
        (["--model", "inpaint.safetensors", "--init-image", "map.png"], "--mask: tiny-inpaint is an inpainting model"),
        (
            ["--model", "map.safetensors", "--map", "map.png", "--hires", "2"],
            "--hires: a picture of text alone, not with",
        ),
        (["--model", "depth", "--depth", "depth.png", "a cat", "--hires", "2"], "not with --depth"),
        (
            [*("--model", "depth", "--depth", "depth.png", "a cat"), *("--init-image", "square.png")],
            "--init-image square.png: makes pictures of 16 x 16 pixels, --depth is of 32 x 16",
        ),
        (
            [
                *("--model", "depth", "--depth", "depth.png", "a"),
                *("--init-image", "square.png", "--outpaint", "4,0,4,0"),
            ],
            "--outpaint 4,0,4,0: makes pictures of 24 x 16 pixels, --depth is of 32 x 16",
        ),
        (["--model", "depth.safetensors", "--depth", "depth.png", "a"], "--model: this model came without a tokenizer"),
    ],
)
def test_refusals(arguments, said, script, place, models, capfd):
    (place / "bad.json").write_text("[[9, 0, 0, 1, 1]]")
    Image.new("RGB", (16, 16)).save(place / "colour.png")
    Image.new("L", (16, 16), 9).save(place / "high.png")
    Image.new("RGB", (16, 16)).save(place / "square.png")
    assert script("sample/generate.py", "--out", "refused", "--steps", 2, "--no-cache", *arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0], lines
