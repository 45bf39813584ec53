"""sample/generate.py with a model of classes: --classes, files of classes, grids, --from, refusals in one line."""

import pytest
from PIL import Image

import sdjax
from sdjax.weights import single
from sdjax.weights.hashes import file_hash
from tests.kinds import CLASSES as TINY
from tests.kinds import model

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def classes(place, monkeypatch):
    monkeypatch.setattr(single, "CANDIDATES", (*single.CANDIDATES, TINY))
    sdjax.save(model(), place / "classes.safetensors")


def draw(script, place, out, *arguments):
    assert script("sample/generate.py", "--out", out, "--steps", 2, "--no-cache", *arguments) == 0
    pictures = sorted((place / out).glob("0*.png"))
    return {path.name: Image.open(path).text["parameters"] for path in pictures}


def test_one_picture_of_each_class(script, place, classes):
    of = "--model", "classes.safetensors"
    two = draw(script, place, "two", *of, "--classes", "1, 4", "--seed", 3)
    assert [text.splitlines()[0] for text in two.values()] == ["1", "4"]
    assert list(two) == ["00000-seed3.png", "00001-seed4.png"]
    model = f"Model hash: {file_hash(place / 'classes.safetensors')[:10]}, Model: tiny-classes"
    last = (
        f"Steps: 2, Sampler: DDIM, CFG scale: 3, Seed: 3, Size: 16x16, {model}, Source: classes.safetensors, Version: "
    )
    assert two["00000-seed3.png"].splitlines()[1].startswith(last)
    four = draw(script, place, "four", *of, "--classes", "1,4", "--num-images", 2)
    assert [text.splitlines()[0] for text in four.values()] == ["1", "1", "4", "4"]
    again = draw(script, place, "again", "--from", "two/00001-seed4.png")
    assert (place / "again" / "00000-seed4.png").read_bytes() == (place / "two" / "00001-seed4.png").read_bytes()
    assert list(again) == ["00000-seed4.png"]
    grid = draw(script, place, "grid", *of, "--classes", "2", "--grid", "seed=0,1", "--grid", "sampler=ddim,euler")
    assert len(grid) == 4 and {text.splitlines()[0] for text in grid.values()} == {"2"}
    (place / "classes.txt").write_text("0\n5\n3\n")
    batch = draw(script, place, "batch", *of, "--prompts-file", "classes.txt")
    assert [text.splitlines()[0] for text in batch.values()] == ["0", "5", "3"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--classes", "9"], "--classes 9: whole numbers from 0 to 5 for tiny-classes"),
        (["--classes", "1,x"], "--classes 1,x: whole numbers with commas between them"),
        (["--classes", "-1"], "--classes"),
        (["--classes", "1", "a cat"], "--classes: instead of a prompt, not beside one"),
        (["a cat"], "prompt 'a cat': tiny-classes takes classes, whole numbers, see --classes"),
        (["--classes", "1", "--negative-prompt", "dog"], "--negative-prompt 'dog': tiny-classes takes no text"),
        (["--classes", "1,2", "--grid", "seed=0,1"], "--grid: with one class"),
        (["--classes", "1", "--model", "model"], "--classes 1: model takes none, give a prompt"),
    ],
)
def test_refusals(arguments, said, script, place, classes, capfd):
    model = [] if "--model" in arguments else ["--model", "classes.safetensors"]
    assert script("sample/generate.py", "--out", "refused", "--steps", 2, "--no-cache", *model, *arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0]
