"""`sdjax generate` with image prompts and soft edges: what the text says of them, --from, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.commands.generate_options import Options
from sdjax.commands.image_prompts import load_image_prompts
from sdjax.image.metadata import read_parameters
from sdjax.image.parameters import parse_parameters
from sdjax.tasks.parameters import understand
from tests.image_prompts import image_prompt, write_image_prompt
from tests.narrow import random_model_params
from tests.scripts import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def adapter(place):
    """Adds `look`, a model whose UNet attends, adapter.safetensors, image_encoder/, and look.png."""
    model = replace(CONFIG, name="look", unet=replace(CONFIG.unet, attention=(True,)))
    sd = sdjax.StableDiffusion(model, random_model_params(model), sdjax.load(place / "model").tokenizer)
    sdjax.save(sd, place / "look")
    write_image_prompt(image_prompt(sd), place)
    pixels = np.random.default_rng(0).uniform(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(place / "look.png")
    Image.fromarray(255 - pixels).save(place / "other.png")


ASKED = ("sample/generate.py", "a red apple", "--model", "look", "--steps", 2)
PROMPTED = ("--image-prompt", "adapter.safetensors", "--image-prompt-encoder", "image_encoder")
SEEN = (*PROMPTED, "--image-prompt-image", "look.png")


def drawn(folder):
    (path,) = sorted(folder.glob("0*.png"))
    return np.asarray(Image.open(path)).astype(int), read_parameters(path)


def test_what_the_flags_say_is_in_the_text_and_comes_back(script, adapter, tmp_path):
    more = ("--image-prompt-image", "other.png", "--image-prompt-scale", 0.6)
    assert script(*ASKED, "--out", tmp_path / "plain") == 0
    assert script(*ASKED, *SEEN, *more, "--out", tmp_path / "a") == 0
    pixels, text = drawn(tmp_path / "a")
    assert np.any(pixels != drawn(tmp_path / "plain")[0]) and "Image prompt" not in drawn(tmp_path / "plain")[1]
    fields = parse_parameters(text)[2]
    assert {name: value for name, value in fields.items() if name.startswith("Image prompt")} == {
        "Image prompt": "adapter.safetensors",
        "Image prompt encoder": "image_encoder",
        "Image prompt image": "look.png\nother.png",
        "Image prompt scale": "0.6",
    }
    assert understand(text)[0]["image_prompt_image"] == ("look.png", "other.png")
    picture = tmp_path / "a" / "00000-seed0.png"
    assert script("sample/generate.py", "--from", picture, "--out", tmp_path / "b") == 0
    again, same = drawn(tmp_path / "b")
    assert same == text
    np.testing.assert_array_equal(again, pixels)
    assert script("sample/generate.py", "--from", picture, "--image-prompt-scale", 0, "--out", tmp_path / "c") == 0
    assert np.abs(drawn(tmp_path / "c")[0] - drawn(tmp_path / "plain")[0]).max() <= 1


def test_several_adapters_share_a_tower(adapter, place, monkeypatch):
    monkeypatch.chdir(place)
    twice = {"image_prompt": ("adapter.safetensors",) * 2, "image_prompt_image": (Path("look.png"), Path("other.png"))}
    options = Options(image_prompt_encoder=("image_encoder",), **twice)
    (one, first), (two, second) = load_image_prompts(options)["image_prompt"]
    assert one.tower is two.tower and first != second
    options = replace(options, image_prompt=("adapter.safetensors",))
    assert load_image_prompts(options)["image_prompt"][0][1] == [first, second]


def test_a_batch_run_goes_on_with_the_same_image_prompts_only(script, adapter, tmp_path, capsys):
    (tmp_path / "lines").write_text("a red apple\na hedgehog\n")
    asked = ("sample/generate.py", "--model", "look", "--steps", 2, "--prompts-file", tmp_path / "lines")
    asked = (*asked, "--out", tmp_path / "out")
    assert script(*asked, *SEEN) == 0
    assert script(*asked, *SEEN) == 0
    capsys.readouterr()
    assert script(*asked, *SEEN, "--image-prompt-scale", 0.5) == 2
    assert "image_prompt_scale" in capsys.readouterr().err
    assert script(*asked, *PROMPTED, "--image-prompt-image", "other.png") == 2
    assert "image_prompt_image" in capsys.readouterr().err


def test_hed(script, adapter, place, tmp_path, capsys, monkeypatch):
    pytest.importorskip("h5py")
    from tests.hed import write_hed

    write_hed(place / "hed.h5")
    steered = ("--control", "file", "--control-image", "look.png", "--control-preprocess", "hed")
    for flags, said in (
        ((*steered,), "--control-preprocess hed: needs --hed FILE"),
        (("--hed", "hed.h5"), "--hed: needs --control-preprocess hed"),
        ((*steered, "--hed", "look.png"), "--control file"),
    ):
        assert script(*ASKED, *flags, "--out", "refused") == 2
        assert said in capsys.readouterr().err
    seen = []
    monkeypatch.setattr("sdjax.adapters.control.load_control", lambda source, sd: "a control")
    monkeypatch.setattr("sdjax.commands.task.load_controls", controls(seen))
    assert script(*ASKED, *steered, "--hed", "hed.h5", "--out", tmp_path / "edges") == 0
    assert script(*ASKED, *steered, "--hed", "look.png", "--out", "refused") == 2
    assert "--hed look.png: not an HDF5 file" in capsys.readouterr().err
    text = drawn(tmp_path / "edges")[1]
    assert understand(text)[0]["hed"] == "hed.h5" and "HED: hed.h5" in text
    want = sdjax.preprocess.hed(Image.open(place / "look.png"), place / "hed.h5")
    np.testing.assert_array_equal(np.asarray(seen[0]), np.asarray(want))


def controls(seen: list):
    """The command's own function, whose pictures are kept and steer nothing."""
    from sdjax.commands.controls import load_controls

    def load(options, sd):
        seen.extend(load_controls(options, sd)["control_image"])
        return {}

    return load


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image-prompt-scale", 0.5), "--image-prompt-scale: needs --image-prompt"),
        (("--image-prompt-image", "look.png"), "--image-prompt-image: needs --image-prompt"),
        (("--image-prompt", "adapter.safetensors"), "--image-prompt-encoder: given 0 times for 1 --image-prompt"),
        (PROMPTED, "--image-prompt-image: given 0 times for 1 --image-prompt, at least one expected"),
        ((*SEEN, *PROMPTED), "--image-prompt-image: given 1 times for 2 --image-prompt, one each expected"),
        ((*SEEN, "--image-prompt", "file", "--image-prompt-image", "look.png"), "--image-prompt file"),
        ((*PROMPTED, "--image-prompt-image", "nowhere.png"), "--image-prompt-image nowhere.png"),
        ((*PROMPTED[:2], "--image-prompt-encoder", "model", *SEEN[4:]), "--image-prompt "),
        ((*SEEN, "--model", "model"), "--image-prompt: is for 4 cross-attentions"),
    ],
    ids=str,
)
def test_what_is_refused(flags, said, script, adapter, capsys):
    assert script(*ASKED, *flags, "--out", "refused") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
