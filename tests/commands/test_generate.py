"""sample/generate.py: pictures, their text, grids, tasks.

They run inside of the tests' process, which has imported and compiled already; what has to hold in a fresh one is
tried in a fresh one.
"""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from sdjax.commands.generate_options import Options, settings_of_picture
from sdjax.commands.saving import save_next, save_sheet
from tests.scripts import CONFIG, ROOT

VERSION = f"Version: sdjax {version('sdjax')}"


def MODEL(place):
    """The fields that name the model: its hash is that of its UNet's file."""
    content = (place / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    return f"Model hash: {hashlib.sha256(content).hexdigest()[:10]}, Model: model"


pytestmark = pytest.mark.usefixtures("quick_compile")


def test_generate(script, place, capfd):
    (place / "drawn").mkdir()
    (place / "drawn" / "00011-seed5.png").write_text("an older one")
    assert (
        script(
            "sample/generate.py",
            "a red apple",
            "--model",
            "model",
            "--out",
            "drawn",
            "--steps",
            2,
            "--num-images",
            2,
            "--no-cache",
        )
        == 0
    )
    names = {"00012-seed0.png", "00013-seed1.png", "sheet.png"}
    assert {path.name for path in (place / "drawn").iterdir()} == names | {"00011-seed5.png"}
    image = Image.open(place / "drawn" / "00013-seed1.png")
    assert image.size == (8, 8) and image.text["parameters"].startswith("a red apple\nSteps: 2, Sampler: DDIM")
    assert {Path(line).name for line in capfd.readouterr().out.split()} == names


def test_generate_from_a_picture(script, place, capfd):
    def draw(out, *arguments):
        assert script("sample/generate.py", "--out", out, "--no-cache", *arguments) == 0

    draw(
        "first",
        "a red\napple",
        "--model",
        "model",
        "--steps",
        2,
        "--sampler",
        "euler_a",
        "--seed",
        3,
        "--sigmas",
        "karras",
        "--guidance-scale",
        3,
    )
    draw("again", "--from", "first/00000-seed3.png")
    again = place / "again" / "00000-seed3.png"
    assert again.read_bytes() == (place / "first" / "00000-seed3.png").read_bytes()
    draw("third", "--from", again, "--guidance-scale", 5, "a cat")
    text = Image.open(place / "third" / "00000-seed3.png").text["parameters"]
    assert text == (
        "a cat\nSteps: 2, Sampler: Euler a, Schedule type: Karras, CFG scale: 5, Seed: 3, Size: 8x8, "
        f"{MODEL(place)}, {VERSION}"
    )
    capfd.readouterr()
    info = PngInfo()
    info.add_text(
        "parameters",
        "a dog\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 9, Size: 8x16, "
        "Model hash: 6ce0161689, Model: v1-5, Version: v1.6.0",
    )
    Image.new("RGB", (8, 16)).save(place / "web-ui.png", pnginfo=info)
    draw("web", "--from", "web-ui.png", "--model", "model")
    assert Image.open(place / "web" / "00000-seed9.png").size == (8, 16)
    said = capfd.readouterr().err.splitlines()[0]
    assert said == "--from web-ui.png: not used: Model hash: 6ce0161689, Model: v1-5"
    draw("half", "a cat", "--model", "model", "--steps", 2, "--dtype", "bfloat16")
    draw("halves", "--from", "half/00000-seed0.png")
    half, halves = (place / name / "00000-seed0.png" for name in ("half", "halves"))
    assert half.read_bytes() == halves.read_bytes() and "Dtype: bfloat16" in Image.open(half).text["parameters"]


@pytest.mark.parametrize(
    "source, model, dropped",
    [("org/name", "org/name", ""), ("gone.safetensors", "emoji", "Model: m, Source: gone.safetensors")],
)
def test_the_source_of_a_picture_is_taken_or_named(tmp_path, capsys, source, model, dropped):
    info = PngInfo()
    info.add_text("parameters", f"a dog\nSteps: 2, Model: m, Source: {source}")
    Image.new("RGB", (8, 16)).save(tmp_path / "a.png", pnginfo=info)
    assert settings_of_picture(Options(from_=tmp_path / "a.png")).model == model
    assert capsys.readouterr().err == (f"--from {tmp_path / 'a.png'}: not used: {dropped}\n" if dropped else "")


def test_a_picture_that_names_no_model(tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a dog\nSteps: 2, Model hash: 7460a6fa")
    Image.new("RGB", (8, 16)).save(tmp_path / "a.png", pnginfo=info)
    assert settings_of_picture(Options(from_=tmp_path / "a.png")).model == Options.model


def test_runs_into_one_folder_keep_their_hands_off_each_others_pictures(tmp_path):
    """As many threads as pictures look for a free number at once."""
    picture = Image.new("RGB", (8, 8))
    with ThreadPoolExecutor(8) as pool:
        paths = [*pool.map(lambda _: save_next(picture, tmp_path, 7, "a"), range(24))]
    assert sorted(path.name for path in paths) == [f"{i:05d}-seed7.png" for i in range(24)]
    assert all(Image.open(path).size == (8, 8) for path in paths)
    with pytest.raises(AttributeError):
        save_next(None, tmp_path, 7, "a")
    assert len([*tmp_path.iterdir()]) == 24, "no empty file stays"


def test_generate_grid_and_tasks(script, place, capfd):
    def draw(out, *arguments):
        assert (
            script(
                "sample/generate.py",
                "a red apple",
                "--model",
                "model",
                "--out",
                out,
                "--no-cache",
                "--steps",
                2,
                *arguments,
            )
            == 0
        )

    def text(out, number):
        (path,) = (place / out).glob(f"{number:05d}-*")
        return Image.open(path).text["parameters"].splitlines()[-1]

    draw("grid", "--grid", "guidance-scale=1,7.5", "--grid", "sampler=ddim,euler_a", "--grid", "seed=3..4")
    names = {f"{i:05d}-seed{3 + i % 2}.png" for i in range(8)}
    assert {path.name for path in (place / "grid").iterdir()} == {*names, "sheet.png"}
    assert text("grid", 3) == (
        "Steps: 2, Sampler: Euler a, Schedule type: Uniform, CFG scale: 1, Seed: 4, Size: 8x8, "
        f"{MODEL(place)}, {VERSION}"
    )
    draw("grid again", "--from", place / "grid" / "sheet.png")
    again = [(place / out / "sheet.png").read_bytes() for out in ("grid", "grid again")]
    assert again[0] == again[1], "with the settings in it"
    draw("grid", "--sampler", "euler_a", "--guidance-scale", 1, "--seed", 4, "--preview", 1)
    assert Image.open(place / "grid" / "preview.png").size == (12, 12)
    again = place / "grid" / "00008-seed4.png"
    assert again.read_bytes() == (place / "grid" / "00003-seed4.png").read_bytes()
    mask = Image.new("L", (8, 8))
    mask.paste(255, (4, 0, 8, 8))
    mask = Image.merge("LA", [Image.new("L", (8, 8), 255), mask])  # white where it is not transparent
    mask.save(place / "mask.png")
    first = place / "grid" / "00000-seed3.png"
    draw("tasks", "--init-image", first, "--strength", 0.5, "--preview", 1)
    assert not (place / "tasks" / "preview.png").exists(), "one step has nothing on its way"
    draw("tasks", "--init-image", first, "--mask", "mask.png")
    assert text("tasks", 0) == (
        f"Steps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 0, Size: 8x8, {MODEL(place)}, "
        f"Denoising strength: 0.5, Init image: {first}, {VERSION}"
    )
    old, like, new = (np.asarray(Image.open(path)) for path in (first, *sorted((place / "tasks").iterdir())))
    assert (old[:, :4] == new[:, :4]).all() and (old[:, 4:] != new[:, 4:]).any() and (old[:, :4] != like[:, :4]).any()
    draw("tasks", "--from", place / "tasks" / "00000-seed0.png")
    (again,) = (place / "tasks").glob("00002-*")
    assert (np.asarray(Image.open(again)) == like).all()


def test_generate_with_an_embedding_a_checker_and_a_watermark(script, place, capfd, monkeypatch):
    """All of them are in the picture's text and repeated by --from."""

    def draw(out, *arguments):
        assert script("sample/generate.py", "--out", place / out, "--no-cache", *arguments) == 0
        return sorted((place / out).iterdir())[-1]

    vectors = np.random.default_rng(0).normal(size=(2, CONFIG.text.width)).astype(np.float32)
    save_file({"applish": vectors}, place / "learned, here.safetensors")
    short = "an applish", "--model", "model", "--steps", 2, "--sampler", "euler"
    plain = draw("without", *short)
    words = "--embedding", "learned, here.safetensors", "--guidance-interval", 0.2, 30, "--guidance-rescale", 0.5
    changed = draw("with", *short, *words)
    assert (np.asarray(Image.open(changed)) != np.asarray(Image.open(plain))).any()
    last = Image.open(changed).text["parameters"].splitlines()[-1]
    more = 'Guidance rescale: 0.5, Guidance interval: 0.2 30.0, Embeddings: "learned, here.safetensors"'
    assert last.endswith(f"{more}, {VERSION}")
    assert draw("again", "--from", changed).read_bytes() == changed.read_bytes()

    monkeypatch.setattr("sdjax.tasks.safety.load_safety_checker", lambda folder: object())  # tests/tasks
    monkeypatch.setattr("sdjax.tasks.safety.check_safety", lambda checker, images: np.arange(len(images)) % 2 == 1)
    monkeypatch.setattr("sdjax.image.watermark.PIXELS", 64)
    monkeypatch.setattr(
        "sdjax.image.watermark.embed",
        lambda image, content: image.transpose(0) if content == b"StableDiffusionV1" else None,
    )
    capfd.readouterr()
    black = draw("safe", *short, "--num-images", 2, "--safety-checker", "folder", "--watermark")
    first, black = sorted((place / "safe").glob("0*"))
    assert not np.asarray(Image.open(black)).any()
    np.testing.assert_array_equal(np.asarray(Image.open(first))[:, ::-1], np.asarray(Image.open(plain)))
    assert "--safety-checker: 1 of 2 pictures made black" in capfd.readouterr().err
    assert Image.open(first).text["parameters"].endswith(f"Safety checker: folder, Watermark: True, {VERSION}")
    again = draw("safer", "--from", first, "--seed", 0)
    np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(first)))


def test_names_and_terminals_that_are_not_utf_8(place, tmp_path):
    """A name of Latin-1 bytes goes into a picture's text with escapes, and a path that the terminal lacks is printed
    so; in a process of its own, because both belong to it."""
    name = os.fsdecode("caf\xe9.png".encode("latin-1"))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", tmp_path / name)
    command = [sys.executable, ROOT / "sample/generate.py", "a cat", "--model", place / "model", "--steps", "2"]
    where = os.environ | {"PYTHONIOENCODING": "cp1252", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "SDJAX_CACHE": "off"}
    more = ["--init-image", name, "--sampler", "euler", "--num-images", "2", "--out", "漢字"]
    done = subprocess.run(command + more, cwd=tmp_path, env=where, capture_output=True, text=True, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "漢字").iterdir()) == [*names_of(2), "sheet.png"]
    assert r"\u6f22\u5b57/00001-seed1.png" in done.stdout
    assert r"Init image: caf\udce9.png" in Image.open(tmp_path / "漢字" / "00000-seed0.png").text["parameters"]


def names_of(count):
    return [f"{i:05d}-seed{i}.png" for i in range(count)]


def test_a_sheet_has_its_settings(script, place, capfd):
    """--from draws all of it again; a picture's own text says nothing of the others."""
    draw = lambda out, *more: script("sample/generate.py", "--model", "model", "--out", out, "--no-cache", *more)
    assert draw("sheets", "a cat", "--steps", 2, "--num-images", 3, "--seed", 5) == 0
    sheet = place / "sheets" / "sheet.png"
    text = Image.open(sheet).text["parameters"]
    assert text.startswith("a cat\nSteps: 2, ") and "Seed: 5, " in text and "Images: 3" in text
    assert "Images" not in Image.open(place / "sheets" / "00000-seed5.png").text["parameters"]
    assert draw("sheets again", "--from", sheet) == 0
    assert (place / "sheets again" / "sheet.png").read_bytes() == sheet.read_bytes()
    assert "not used" not in capfd.readouterr().err


def test_the_cells_of_a_mask(script, place, capfd, caplog):
    """A mask whose white misses every square's corner paints with --mask-cells any; --from repeats it."""
    Image.new("RGB", (32, 32), "red").save(place / "red.png")
    dots = np.zeros((32, 32), np.uint8)
    dots[1::4, 1::4] = 255
    Image.fromarray(dots).save(place / "dots.png")
    common = "--model", "emoji", "--no-cache", "--out"
    first = "a cat", "--init-image", "red.png", "--mask", "dots.png", "--steps", 2
    assert script("sample/generate.py", *common, "dots", *first) == 0
    assert "100% of its white is not repainted" in caplog.text
    assert script("sample/generate.py", *common, "dots", *first, "--mask-cells", "any") == 0
    assert "not repainted" not in caplog.text[caplog.text.index("-cells any") :]
    assert script("sample/generate.py", *common, "dots", "--from", "dots/00001-seed0.png") == 0
    corner, cells, again = (np.asarray(Image.open(path)) for path in sorted((place / "dots").iterdir()))
    assert (corner[dots == 0] == (255, 0, 0)).all() and (cells[dots == 0] == (255, 0, 0)).all()
    assert (cells != corner).any() and (again == cells).all()
    assert script("sample/generate.py", *common, "dots", "a cat", "--mask-cells", "any") == 2
    assert "--mask-cells any: needs --mask" in capfd.readouterr().err


def test_a_second_sheet_does_not_replace_the_first(tmp_path):
    sheet = Image.new("RGB", (4, 4))
    assert [save_sheet(sheet, tmp_path, "a").name for _ in range(3)] == ["sheet.png", "sheet-1.png", "sheet-2.png"]
