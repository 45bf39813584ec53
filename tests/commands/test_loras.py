"""--lora, --lora-folder and tags of prompts, as one types them."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sdjax.commands.loras import read_weighted
from sdjax.errors import SdjaxError
from tests.loras import factors, sites
from tests.scripts import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a.safetensors", ("a.safetensors", 1.0, None)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8, None)),
        ("a.safetensors:0.8:-0.5", ("a.safetensors", 0.8, -0.5)),
        ("C:\\x\\a.pt", ("C:\\x\\a.pt", 1.0, None)),
        ("C:\\x\\a.pt:2", ("C:\\x\\a.pt", 2.0, None)),
        ("a:b:0.5", ("a:b", 0.5, None)),
        ("1:2:3:4", ("1:2", 3.0, 4.0)),
        ("0.5", ("0.5", 1.0, None)),
    ],
)
def test_only_a_last_part_that_is_a_number_is_a_weight(text, wanted):
    assert read_weighted(text) == wanted


def test_a_lora_has_a_name():
    with pytest.raises(SdjaxError, match=r"lora ':0.5': FILE, FILE:WEIGHT"):
        read_weighted(":0.5")


@pytest.fixture(scope="module")
def loras(place):
    folder = place / "loras"
    folder.mkdir()
    for seed, name in enumerate(("one", "two")):
        rng, tensors = np.random.default_rng(seed), {}
        for site in sites(CONFIG, ("unet",)):
            for end, value in factors("lora", site.shape, rng).items():
                tensors[f"lora_unet_{site.name.replace('.', '_')}.{end}"] = np.ascontiguousarray(value)
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def draw(script, place):
    def draw(out, *arguments):
        assert script("sample/generate.py", "--out", out, "--no-cache", *arguments) == 0
        return sorted((place / out).glob("0*.png"))

    return draw


SHORT = "--model", "model", "--steps", 2, "--sampler", "euler"


def test_pictures_say_their_loras_and_are_drawn_again(draw, loras, place, capfd):
    (plain,) = draw("lora plain", "a cat", *SHORT)
    (given,) = draw(
        "lora given", "a cat", *SHORT, "--lora", "loras/one.safetensors:0.5", "--lora", "loras/two.safetensors"
    )
    text = "a cat<lora:one:0.5><lora:two>"
    (named,) = draw("lora named", text, *SHORT, "--lora-folder", "loras")
    pixels = [np.asarray(Image.open(path)) for path in (plain, given, named)]
    assert (pixels[0] != pixels[1]).any() and (pixels[1] == pixels[2]).all()
    one, two = Image.open(given).text["parameters"], Image.open(named).text["parameters"]
    assert 'Loras: "loras/one.safetensors:0.5\\nloras/two.safetensors", Lora hashes: "one: ' in one
    assert two.startswith(f"{text}\nSteps: 2") and 'Lora folder: loras, Lora hashes: "one: ' in two
    assert one.split("Lora hashes: ")[1] == two.split("Lora hashes: ")[1]
    capfd.readouterr()
    for path in (given, named):
        (again,) = draw(f"again {path.parent.name}", "--from", path)
        assert again.read_bytes() == path.read_bytes()
    assert "not used" not in capfd.readouterr().err
    before = (loras / "two.safetensors").read_bytes()
    (loras / "two.safetensors").write_bytes((loras / "one.safetensors").read_bytes())
    draw("again other", "--from", named)
    (loras / "two.safetensors").write_bytes(before)
    assert "not used: Lora hashes: one: " in capfd.readouterr().err


def test_a_grid_of_weights(draw, loras, place):
    pictures = draw("lora grid", "a cat", *SHORT, "--lora", "loras/one.safetensors", "--grid", "lora-scale=0,0.5,1")
    (plain,) = draw("lora plain 2", "a cat", *SHORT)
    (half,) = draw("lora half", "a cat", *SHORT, "--lora", "loras/one.safetensors:0.5")
    shown = lambda path: np.asarray(Image.open(path))
    assert len(pictures) == 3
    np.testing.assert_array_equal(shown(pictures[0]), shown(plain))
    np.testing.assert_array_equal(shown(pictures[1]), shown(half))
    assert "Lora scale: 0.5" in Image.open(pictures[1]).text["parameters"]


def test_batches(draw, loras, place, script, capfd):
    lines = ["a cat<lora:one>", "a dog", "a cow<lora:one>", "a bee<lora:two>"]
    (place / "tagged.txt").write_text("\n".join(lines))
    arguments = "--prompts-file", "tagged.txt", *SHORT, "--lora-folder", "loras"
    pictures = draw("lora batch", *arguments)
    assert len(pictures) == 4
    (alone,) = draw("lora alone", lines[3], *SHORT, "--seed", 3, "--lora-folder", "loras")
    difference = np.abs(np.asarray(Image.open(alone), int) - np.asarray(Image.open(pictures[3])))
    assert difference.max() <= 1
    settings = json.loads((place / "lora batch" / "manifest.jsonl").read_text().splitlines()[0])["settings"]
    assert [entry.split(":")[0] for entry in settings["loras"]] == ["one", "two"] and "lora_folder" not in settings
    assert draw("lora batch", *arguments) == pictures
    before = (loras / "one.safetensors").read_bytes()
    (loras / "one.safetensors").write_bytes((loras / "two.safetensors").read_bytes())
    capfd.readouterr()
    assert script("sample/generate.py", "--out", "lora batch", "--no-cache", *arguments) == 2
    (loras / "one.safetensors").write_bytes(before)
    assert "a run with other settings (loras is" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments, match",
    [
        (("a <lora:one>",), "--lora-folder None: the folder that holds <lora:one>"),
        (("a <lora:none>", "--lora-folder", "loras"), "<lora:none> is not in lora_folder loras; there are one"),
        (("a <lora:one:x>", "--lora-folder", "loras"), "prompt: <lora:one:x>: numbers te and unet"),
        (("a", "--lora-folder", "nowhere"), "--lora-folder 'nowhere': a folder that is there"),
        (("a", "--lora", "nowhere:0.5"), "--lora nowhere: no such LoRA file or folder"),
        (("a", "--lora", "model/unet"), "--lora model/unet: holds neither"),
        (("a", "--lora", "model/unet/diffusion_pytorch_model.safetensors"), "fit nothing in"),
    ],
)
def test_refusals(script, loras, capfd, arguments, match):
    assert script("sample/generate.py", *arguments, *SHORT, "--out", "lora refused", "--no-cache") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert match in line
