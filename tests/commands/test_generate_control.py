"""`sdjax generate` with controls: what the pictures' text says of them, --from, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.image.metadata import read_parameters
from sdjax.image.parameters import parse_parameters
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.fields import write_control
from sdjax.networks.table import make_rows
from sdjax.tasks.parameters import understand
from sdjax.weights.convert import to_file_tensors
from tests.narrow import random_model_params, random_params
from tests.scripts import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def control(place):
    """Adds `two`, a model whose latents are of 2 x 2 pixels, `net`, a ControlNet for it, and `hint.png`."""
    model = replace(CONFIG, name="two", size=16, vae=replace(CONFIG.vae, channels=(8, 8)))
    tokenizer = sdjax.load(place / "model").tokenizer
    sdjax.save(sdjax.StableDiffusion(model, random_model_params(model), tokenizer), place / "two")
    config = ControlConfig(model.unet, (4, 6))
    (place / "net").mkdir()
    write_json(place / "net" / "config.json", write_control(config))
    tensors = to_file_tensors(random_params(config), make_rows(config))
    write_tensors(place / "net" / "diffusion_pytorch_model.safetensors", {k: 10 * v for k, v in tensors.items()})
    pixels = np.random.default_rng(0).uniform(0, 255, (20, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(place / "hint.png")


ASKED = ("sample/generate.py", "a red apple", "--model", "two", "--steps", 3)
STEERED = ("--control", "net", "--control-image", "hint.png", "--control-preprocess", "invert", "--control-scale", 0.5)

CANNY = ("--control", "net", "--control-image", "hint.png", "--control-preprocess", "canny")


def drawn(folder):
    (path,) = sorted(folder.glob("0*.png"))
    return np.asarray(Image.open(path)), read_parameters(path)


def test_what_the_flags_say_is_in_the_text_and_comes_back(script, control, tmp_path):
    more = ("--control-interval", 0, 0.7, "--control-mode", "prompt")
    assert script(*ASKED, "--out", tmp_path / "plain") == 0
    assert script(*ASKED, *STEERED, *more, "--out", tmp_path / "a") == 0
    pixels, text = drawn(tmp_path / "a")
    assert np.any(pixels != drawn(tmp_path / "plain")[0]) and "Control" not in drawn(tmp_path / "plain")[1]
    fields = parse_parameters(text)[2]
    said = {name: value for name, value in fields.items() if name.startswith("Control")}
    assert said == {
        "Control": "net",
        "Control image": "hint.png",
        "Control preprocess": "invert",
        "Control scale": "0.5",
        "Control interval": "0.0 0.7",
        "Control mode": "prompt",
    }
    found = understand(text)[0]
    assert found["control"] == ("net",) and found["control_interval"] == (0.0, 0.7)
    assert script("sample/generate.py", "--from", tmp_path / "a" / "00000-seed0.png", "--out", tmp_path / "b") == 0
    again, same = drawn(tmp_path / "b")
    assert same == text
    np.testing.assert_array_equal(again, pixels)
    picture = tmp_path / "a" / "00000-seed0.png"
    assert script("sample/generate.py", "--from", picture, "--control-scale", 0, "--out", tmp_path / "c") == 0
    np.testing.assert_array_equal(drawn(tmp_path / "c")[0], drawn(tmp_path / "plain")[0])


def test_two_controls(script, control, tmp_path):
    twice = (*STEERED, "--control", "net", "--control-image", "hint.png", "--control-scale", 0)
    assert script(*ASKED, *STEERED, "--out", tmp_path / "one") == 0
    assert script(*ASKED, *twice, "--out", tmp_path / "two") == 0
    (one, _), (two, text) = drawn(tmp_path / "one"), drawn(tmp_path / "two")
    assert np.abs(one.astype(int) - two).max() <= 1
    found = understand(text)[0]
    assert found["control"] == ("net", "net") and found["control_scale"] == (0.5, 0.0)


def test_a_batch_run_goes_on_with_the_same_controls_only(script, control, tmp_path, capsys):
    (tmp_path / "lines").write_text("a red apple\na hedgehog\n")
    asked = ("sample/generate.py", "--model", "two", "--steps", 2, "--prompts-file", tmp_path / "lines")
    asked = (*asked, "--out", tmp_path / "out")
    assert script(*asked, *STEERED) == 0
    assert script(*asked, *STEERED) == 0
    capsys.readouterr()
    assert script(*asked, *STEERED[:-1], 0.6) == 2
    assert "control_scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--control", "net"), "--control-image: given 0 times for 1 --control"),
        (("--control-scale", 1), "--control-scale: given 1 times for 0 --control"),
        ((*STEERED, "--control-mode", "prompt", "--control-mode", "prompt"), "--control-mode: given 2 times for 1"),
        ((*STEERED, "--canny-low", 50), "--canny-low: needs --control-preprocess canny"),
        ((*CANNY, "--canny-low", 300), "--canny-low 300: not above --canny-high, 200"),
        ((*CANNY, "--canny-low", -1), "--canny-low -1: a number from 0 on"),
        ((*STEERED, "--control-interval", 0.5, 0.2), "--control-interval"),
        (("--control", "file", "--control-image", "hint.png"), "--control file"),
        (("--control", "net", "--control-image", "file"), "--control-image file"),
        (("--control", "net", "--control-image", "nowhere.png"), "--control-image nowhere.png"),
        (("--control", "two/unet", "--control-image", "hint.png"), "_class_name"),
    ],
    ids=str,
)
def test_what_is_refused(flags, said, script, control, capsys):
    assert script(*ASKED, *flags, "--out", "refused") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
