"""The scripts as one types them: what a run leaves in its folder, and refusals of one line.

They run inside of the tests' process, which has imported and compiled already; what has to hold in a fresh one is
tried in a fresh one.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

import sdjax
from sdjax.config import ScheduleConfig
from sdjax.nn.lpips import LPIPS
from sdjax.text import train_bpe
from sdjax.weights.convert import OPERATIONS
from sdjax.weights.lpips import lpips_rows, read_lpips
from tests.narrow import NARROW, NARROW_VISION, random_model_params
from tests.test_text import captions

pytestmark = pytest.mark.usefixtures("quick_compile")
ROOT = Path(__file__).parent.parent
CONFIG = replace(
    NARROW, name="model", size=8, text=replace(NARROW.text, layers=1), vae=replace(NARROW.vae, channels=(8,), blocks=1),
    unet=replace(NARROW.unet, channels=(16,), blocks=1, attention=(False,), heads=(2,)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `model`, `pictures`, and `file`, which is in the way."""
    place = tmp_path_factory.mktemp("scripts")
    tokenizer = train_bpe(captions(), CONFIG.text.vocab_size, place / "tokenizer")
    sdjax.save(sdjax.StableDiffusion(CONFIG, random_model_params(CONFIG), tokenizer), place / "model")
    emoji = Path(__file__).parent / "data" / "emoji300"
    lines = (emoji / "metadata.jsonl").read_text().splitlines()[:16]
    (place / "pictures").mkdir()
    for line in lines:
        shutil.copy(emoji / json.loads(line)["file_name"], place / "pictures")
    (place / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    (place / "file").write_text("mine")
    return place


@pytest.fixture
def script(place, monkeypatch):
    """script("train/train_vae.py", "--steps", 2): runs it in `place` and returns its exit status."""

    def script(name, *arguments):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setenv("SDJAX_CACHE", "off")  # JAX's settings are the whole process'
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    return script


def changed(sd, trained):
    """Which parts of a model differ."""
    differ = lambda a, b: any(jax.tree.leaves(jax.tree.map(lambda x, y: (np.asarray(x) != np.asarray(y)).any(), a, b)))
    return {part for part in sd.params if differ(sd.params[part], trained.params[part])}


def train(script, place, name, steps, *arguments):
    """Trains to a new folder and checks what every training script leaves; (its folder, its records, the export)."""
    out = place / Path(name).stem
    command = [name, "--model", "model", "--data", "pictures", "--out", out, "--steps", steps, "--batch-size", 8,
               "--log-every", 1, "--learning-rate", 1e-3, "--warmup", 0, "--optimizer", "lion", *arguments]
    assert script(*command) == 0
    settings = json.loads((out / "config.json").read_text())
    assert settings["steps"] == steps and settings["model"] == "model" and settings["seed"] == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    for record in records:
        assert {"step", "loss", "learning_rate", "grad_norm"} <= set(record)
        assert np.isfinite(list(record.values())).all() and record["grad_norm"] > 0
        assert record["images_per_second"] > 0
    assert [path.name for path in (out / "checkpoints").iterdir()] == [str(steps)]
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    return out, records, sdjax.load(out / "export")


def test_train_diffusion(script, place):
    out, records, trained = train(
        script,
        place,
        "train/train_diffusion.py",
        3,
        "--prediction",
        "v",
        "--sample-prompts",
        2,
        "--min-snr-gamma",
        5,
        "--ema-decay",
        0,
        *["--zero-terminal-snr", "--noise-offset", 0.1, "--dtype", "bfloat16", "--remat", "--accumulate", 2],
        *["--validation", 3, "--parallel", "fsdp", "--max-bad", 0.5, "--num-processes", 1, "--process-id", 0],
    )
    sd = sdjax.load(place / "model")
    assert changed(sd, trained) == {"unet"}
    assert trained.config == replace(
        CONFIG, name="export", schedule=ScheduleConfig(prediction="v", zero_terminal_snr=True)
    )
    assert Image.open(out / "samples" / "3.png").width > 2 * 8
    assert ["validation_loss" in record for record in records] == [False, False, True]
    latents, states = sorted((out / "cache").iterdir())
    load = lambda folder: np.load(folder / "00000.npy")
    assert load(latents).shape == (16, 8, 8, 8) and load(states).shape[1:] == (12, 24)
    assert len({record["learning_rate"] for record in records}) == 1


def test_dry_run(script, place, capfd):
    """It ends before a picture is read."""
    for parallel in ("pmap", "fsdp"):
        flags = {"--out": "dry", "--dry-run": "--remat", "--parallel": parallel, "--validation": 3, "--size": 16}
        assert script("train/train_diffusion.py", *arguments("train", TRAIN, flags)) == 0
        said = capfd.readouterr().out
        assert '"dry_run": true' in said and f"1 process, {parallel}" in said and "memory      " in said
    assert not list((place / "dry").iterdir())


def test_train_vae(script, place):
    out, records, trained = train(script, place, "train/train_vae.py", 2, "--sample-every", 1)
    assert changed(sdjax.load(place / "model"), trained) == {"vae"}
    assert {"kl", "psnr", "ssim", "reconstruction"} <= set(records[0]) and "realism" not in records[0]
    assert {path.name for path in (out / "samples").iterdir()} == {"1.png", "2.png"}
    pictures = np.stack(
        [np.asarray(Image.open(path).convert("RGB").resize((8, 8))) for path in (place / "pictures").glob("*.webp")]
    )
    latents = sdjax.encode(trained, pictures.astype(np.float32) / 127.5 - 1)
    assert trained.config.vae.scaling != CONFIG.vae.scaling and abs(latents.std() - 1) < 0.1


def test_train_vae_with_every_term(script, place, monkeypatch, tmp_path):
    """LPIPS, and a discriminator from the third step on, the decoder alone, at another size than the model's."""
    widths, files = (4, 4, 4, 4, 4), {"vgg.safetensors": {}, "lpips.safetensors": {}}
    params = LPIPS(widths).init(jax.random.key(0), *2 * [np.zeros((1, 16, 16, 3))])["params"]
    for row in lpips_rows():
        value, name = params, f"{'lpips' if row.path[0].startswith('head') else 'vgg'}.safetensors"
        for key in row.path:
            value = value[key]
        files[name][row.diffusers] = np.ascontiguousarray(OPERATIONS[row.operation][1](np.asarray(value)))
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    monkeypatch.setattr("sdjax.weights.lpips.read_lpips", lambda vgg, heads: read_lpips(vgg, heads, widths))
    name = "train/train_vae.py"
    settings = TRAIN | {"--out": tmp_path / "run", "--steps": 4, "--log-every": 1, "--sample-every": 0, "--size": 24,
                        "--vgg": tmp_path / "vgg.safetensors", "--lpips": tmp_path / "lpips.safetensors",
                        "--discriminator-weight": 0.5, "--discriminator-start": 2, "--loss": "l2"}
    assert script(name, *arguments(name, settings, {}), "--freeze-encoder", "--flip", "--crop", "random") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        before = record["reconstruction"] + record["perceptual"] + 1e-6 * record["kl"] / 1728
        term = 0.5 * record["adaptive_weight"] / 1728 * -record["realism"] + record["critic_loss"]
        assert abs(record["loss"] - before - (term if record["step"] > 2 else 0)) < 1e-4
    sd, trained = sdjax.load(place / "model"), sdjax.load(tmp_path / "run" / "export")
    assert trained.config == replace(CONFIG, name="export") and changed(sd, trained) == {"vae"}
    parts = {part: sdjax.StableDiffusion(CONFIG, {part: trained.params["vae"][part]}, None) for part in
             ("encoder", "decoder")}
    assert not changed(parts["encoder"], sdjax.StableDiffusion(CONFIG, {"encoder": sd.params["vae"]["encoder"]}, None))


def test_train_clip(script, place, monkeypatch):
    monkeypatch.setattr("sdjax.config.EMOJI_VISION", NARROW_VISION)
    out, records, trained = train(script, place, "train/train_clip.py", 2)
    assert changed(sdjax.load(place / "model"), trained) == {"text"}
    assert all(0 <= record["retrieval"] <= 1 for record in records)
    vision, head = sdjax.load_clip(out / "export" / "clip")
    assert vision.projection == CONFIG.text.width == head["text_projection"].shape[1]
    assert (
        set(head) == {"vision", "text_projection", "logit_scale"} and abs(head["logit_scale"] - np.log(1 / 0.07)) < 0.1
    )


def test_half_of_a_clip_batch_is_alike(script, place, monkeypatch, tmp_path, capfd):
    from train.train_clip import Options, half_alike

    records = [{"file_name": "x", "text": f"thing {i % 40}", "style": i % 3, "ground": i % 2} for i in range(600)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    options = Options(data=tmp_path, out=tmp_path, batch_size=32, alike="style,ground")
    choose = half_alike(options, tuple(record["text"] for record in records))
    first, *others = (choose(step) for step in range(20))
    for rows in (first, *others):
        alike = [records[row] for row in rows[:16]]
        assert len(rows) == 32 and len({(r["style"], r["ground"]) for r in alike}) == 1
        assert len({r["text"] for r in alike}) == 16
    assert len({tuple((records[rows[0]][name]) for name in ("style", "ground")) for rows in others}) > 3
    np.testing.assert_array_equal(first, choose(0))
    monkeypatch.setattr("sdjax.config.EMOJI_VISION", NARROW_VISION)
    name = "train/train_clip.py"
    assert script(name, *arguments(name, TRAIN, {"--alike": "colour"})) == 2
    assert "--alike colour: no line of metadata.jsonl has a field 'colour'" in capfd.readouterr().err


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
    assert image.size == (8, 8) and image.text["parameters"].startswith("a red apple\nSteps: 2, Sampler: ddim")
    assert {Path(line).name for line in capfd.readouterr().out.split()} == names


def test_generate_from_a_picture(script, place, capfd):
    def draw(out, *arguments):
        assert script("sample/generate.py", "--out", out, "--no-cache", *arguments) == 0

    draw("first", "a red\napple", "--model", "model", "--steps", 2, "--sampler", "euler_a", "--seed", 3, "--sigmas",
         "karras", "--guidance-scale", 3)
    draw("again", "--from", "first/00000-seed3.png")
    again = place / "again" / "00000-seed3.png"
    assert again.read_bytes() == (place / "first" / "00000-seed3.png").read_bytes()
    draw("third", "--from", again, "--guidance-scale", 5, "a cat")
    text = Image.open(place / "third" / "00000-seed3.png").text["parameters"]
    assert text == ("a cat\nSteps: 2, Sampler: euler_a, Schedule type: Karras, CFG scale: 5, Seed: 3, Size: 8x8, "
                    "Model: model")
    capfd.readouterr()
    info = PngInfo()
    info.add_text("parameters", "a dog\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 9, Size: 8x16, "
                                "Model hash: 6ce0161689, Model: v1-5, Version: v1.6.0")
    Image.new("RGB", (8, 16)).save(place / "web-ui.png", pnginfo=info)
    draw("web", "--from", "web-ui.png", "--model", "model")
    assert Image.open(place / "web" / "00000-seed9.png").size == (8, 16)
    said = capfd.readouterr().err.splitlines()[0]
    assert said == "--from web-ui.png: not used: Model hash: 6ce0161689, Model: v1-5, Version: v1.6.0"


def test_generate_grid_and_tasks(script, place, capfd):
    def draw(out, *arguments):
        assert script("sample/generate.py", "a red apple", "--model", "model", "--out", out, "--no-cache", "--steps", 2,
                      *arguments) == 0

    def text(out, number):
        (path,) = (place / out).glob(f"{number:05d}-*")
        return Image.open(path).text["parameters"].splitlines()[-1]

    draw("grid", "--grid", "guidance-scale=1,7.5", "--grid", "sampler=ddim,euler_a", "--grid", "seed=3..4")
    names = {f"{i:05d}-seed{3 + i % 2}.png" for i in range(8)}
    assert {path.name for path in (place / "grid").iterdir()} == {*names, "sheet.png"}
    assert text("grid", 3) == "Steps: 2, Sampler: euler_a, CFG scale: 1, Seed: 4, Size: 8x8, Model: model"
    draw("grid", "--sampler", "euler_a", "--guidance-scale", 1, "--seed", 4, "--preview", 1)
    assert Image.open(place / "grid" / "preview.png").size == (12, 12)
    again = place / "grid" / "00008-seed4.png"
    assert again.read_bytes() == (place / "grid" / "00003-seed4.png").read_bytes()
    mask = Image.new("L", (8, 8))
    mask.paste(255, (4, 0, 8, 8))
    mask.save(place / "mask.png")
    first = place / "grid" / "00000-seed3.png"
    draw("tasks", "--init-image", first, "--strength", 0.5, "--preview", 1)
    assert not (place / "tasks" / "preview.png").exists(), "one step has nothing on its way"
    draw("tasks", "--init-image", first, "--mask", "mask.png")
    assert text("tasks", 0) == ("Steps: 2, Sampler: ddim, CFG scale: 7.5, Seed: 0, Size: 8x8, Model: model, "
                                f"Denoising strength: 0.5, Init image: {first}")
    old, like, new = (np.asarray(Image.open(path)) for path in (first, *sorted((place / "tasks").iterdir())))
    assert (old[:, :4] == new[:, :4]).all() and (old[:, 4:] != new[:, 4:]).any() and (old[:, :4] != like[:, :4]).any()
    draw("tasks", "--from", place / "tasks" / "00000-seed0.png")
    (again,) = (place / "tasks").glob("00002-*")
    assert (np.asarray(Image.open(again)) == like).all()


def test_generate_with_an_embedding_a_checker_and_a_watermark(script, place, capfd, monkeypatch):
    """All of them are in the picture's text and repeated by --from."""
    from safetensors.numpy import save_file

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
    assert last.endswith('Guidance rescale: 0.5, Guidance interval: 0.2 30.0, Embeddings: "learned, here.safetensors"')
    assert draw("again", "--from", changed).read_bytes() == changed.read_bytes()

    monkeypatch.setattr("sdjax.safety.load_safety_checker", lambda folder: object())  # itself: tests/test_safety.py
    monkeypatch.setattr("sdjax.safety.check_safety", lambda checker, images: np.arange(len(images)) % 2 == 1)
    monkeypatch.setattr("sdjax.watermark.PIXELS", 64)
    monkeypatch.setattr("sdjax.watermark.embed", lambda image, content: image.transpose(0) if content == b"StableDiffu"
                        b"sionV1" else None)
    capfd.readouterr()
    black = draw("safe", *short, "--num-images", 2, "--safety-checker", "folder", "--watermark")
    first, black = sorted((place / "safe").glob("0*"))
    assert not np.asarray(Image.open(black)).any()
    np.testing.assert_array_equal(np.asarray(Image.open(first))[:, ::-1], np.asarray(Image.open(plain)))
    assert "--safety-checker: 1 of 2 pictures made black" in capfd.readouterr().err
    assert Image.open(first).text["parameters"].endswith("Safety checker: folder, Watermark: True")
    again = draw("safer", "--from", first, "--seed", 0)
    np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(first)))


GENERATE = {"--model": "model", "--out": "out"}
TRAIN = {"--model": "model", "--data": "pictures", "--out": "refused", "--batch-size": 8}
ANY_TRAIN = [
    ({"--model": "nowhere"}, "--model: nowhere: no such folder"),
    ({"--data": None}, "--data"),
    ({"--data": "nowhere"}, "--data nowhere"),
    ({"--data": "model"}, "no metadata.jsonl"),
    ({"--steps": 0}, "--steps 0"),
    ({"--steps": "x"}, "--steps"),
    ({"--out": "file"}, "--out file: cannot be written"),
    ({"--bogus": 1}, "--bogus"),
    ({"--optimizer": "adam"}, "--optimizer adam"),
    ({"--decay": "step"}, "--decay step"),
    ({"--out": None}, "--out"),
    ({"--batch-size": 0}, "--batch-size 0"),
    ({"--accumulate": 0}, "--accumulate 0"),
    ({"--parallel": "ddp"}, "--parallel ddp: expected pmap or fsdp"),
    ({"--max-bad": 2}, "--max-bad 2"),
    ({"--coordinator": "here"}, "--coordinator here: expected HOST:PORT"),
]
REFUSED = [
    *[
        ("sample/generate.py", GENERATE, *case)
        for case in [
            ({"--model": "nowhere"}, "--model: nowhere: no such folder"),
            ({"--sampler": "eular"}, "--sampler"),
            ({"--steps": 0}, "--steps"),
            ({"--out": "file"}, "--out file: cannot be written"),
            ({"--height": 0}, "--height 0"),
            ({"--bogus": 1}, "--bogus"),
            ({"--dtype": "int8"}, "--dtype"),
            ({"--seed": -1}, "--seed -1"),
            ({"--num-images": 0}, "--num-images 0"),
            ({"--from": "nowhere.png"}, "--from nowhere.png: not a readable picture"),
            ({"--from": "pictures/00003.webp"}, "--from pictures/00003.webp: no `parameters` text"),
            ({"--prompts-file": "file"}, "--prompts-file"),
            ({"--batch-size": 4}, "--batch-size 4: needs --prompts-file"),
            ({"--mask": "file"}, "--mask file: needs --init-image"),
            ({"--strength": 0.5}, "--strength 0.5: needs --init-image"),
            ({"--strength": 2}, "--strength 2.0: a number above 0, to 1"),
            ({"--feather": 2}, "--feather 2.0: needs --mask"),
            ({"--init-image": "none.png"}, "--init-image none.png: no such picture"),
            ({"--init-image": "file"}, "--init-image file: not a readable picture"),
            ({"--init-image": "pictures/00003.webp", "--mask": "file"}, "--mask file: not a readable"),
            ({"--init-image": "pictures/00003.webp", "--width": 0}, "--width 0"),
            ({"--grid": "seed=x"}, "--grid 'seed=x'"),
            ({"--grid": "steps=2,0"}, "--steps 0"),
            ({"--grid": "strength=0.5"}, "--grid strength: needs --init-image"),
            ({"--grid": "seed=1", "--num-images": 2}, "--grid: with one prompt"),
            ({"--preview": 0}, "--preview 0"),
            ({"--clip-skip": 9}, "--clip-skip 9"),
            ({"--syntax": "yaml"}, "--syntax 'yaml': one of a1111, plain"),
            ({"--guidance-interval": "5"}, "--guidance-interval"),
            ({"--embedding": "none.pt"}, "--embedding none.pt: "),
            ({"--embedding": "file"}, "--embedding file: "),
            ({"--safety-checker": "pictures"}, "--safety-checker pictures: "),
            ({"--watermark": "--no-cache"}, "--watermark: takes 65536 pixels, 256 x 256, and more, these pictures "),
            ({"--coordinator": "x"}, "--coordinator x: needs --prompts-file"),
        ]
    ],
    *[
        ("train/train_diffusion.py", TRAIN, *case)
        for case in [
            *ANY_TRAIN,
            ({"--prediction": "x0"}, "--prediction x0"),
            ({"--caption-dropout": 2}, "--caption-dropout 2"),
            ({"--noise-offset": -1}, "--noise-offset -1"),
            ({"--validation": 16}, "--validation 16: expected a folder or a number from 1 to 15"),
            ({"--validation": "nowhere"}, "nowhere: no metadata.jsonl"),
            ({"--size": -1}, "--size -1: expected a positive multiple of 1"),
            ({"--dtype": "float16"}, "--dtype float16: expected float32 or bfloat16"),
            ({"--zero-terminal-snr": "--no-remat"}, "--zero-terminal-snr: pure noise says nothing of eps"),
            ({"--min-snr-gamma": 0}, "--min-snr-gamma 0"),
            ({"--sample-prompts": 0}, "--sample-prompts 0"),
        ]
    ],
    *[("train/train_vae.py", TRAIN, *case) for case in [
        *ANY_TRAIN, ({"--loss": "l3"}, "--loss l3"), ({"--discriminator-weight": -1}, "--discriminator-weight -1"),
        ({"--discriminator-weight": 1}, "--discriminator-weight: needs pictures of 24"), ({"--size": -3}, "--size -3"),
        ({"--vgg": "file"}, "--lpips: is missing"), ({"--lpips": "file"}, "--vgg: is missing"),
        ({"--vgg": "file", "--lpips": "file", "--size": 16}, "file: "), ({"--crop": "left"}, "--crop left"),
        ({"--dtype": "int8"}, "--dtype int8"), ({"--max-bad": 2}, "--max-bad 2")]],
    *[("train/train_clip.py", TRAIN, *case) for case in ANY_TRAIN],
]


def arguments(name, defaults, changes):
    pairs = [(flag, str(value)) for flag, value in (defaults | changes).items() if value is not None]
    return [*(["a red apple"] if name.startswith("sample") else []), *[word for pair in pairs for word in pair]]


@pytest.mark.parametrize("name, defaults, changes, message", REFUSED, ids=lambda value: str(value)[:40])
def test_refusals_are_one_line_that_names_the_flag(script, place, capfd, name, defaults, changes, message):
    before = {path for path in place.rglob("*") if path.name in ("config.json", "metrics.jsonl", "export")}
    assert script(name, *arguments(name, defaults, changes)) == 2
    found = capfd.readouterr()
    assert found.err.startswith("error: ") and message in found.err and found.err.count("\n") == 1 and not found.out
    assert before == {path for path in place.rglob("*") if path.name in ("config.json", "metrics.jsonl", "export")}
    assert (place / "file").read_text() == "mine"


@pytest.mark.parametrize("name, defaults, changes", [
    ("sample/generate.py", GENERATE, {"--bogus": 1}), ("sample/generate.py", GENERATE, {"--model": "nowhere"}),
    ("train/train_diffusion.py", TRAIN, {"--data": None}), ("train/train_clip.py", TRAIN, {"--data": "nowhere"})],
    ids=lambda value: str(value)[:30])
def test_refusals_in_a_fresh_process(place, name, defaults, changes):
    command = [sys.executable, ROOT / name, *arguments(name, defaults, changes)]
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=where, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_an_unreadable_picture_is_named_last(script, place, capfd, tmp_path):
    """A progress bar may come before it, on lines of its own."""
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures" / "00003.webp").write_bytes(b"no picture")
    for name in ("train/train_diffusion.py", "train/train_vae.py"):
        assert script(name, *arguments(name, TRAIN, {"--data": tmp_path / "pictures", "--out": tmp_path / name})) == 2
        last = capfd.readouterr().err.rstrip("\n").split("\n")[-1]
        assert last.startswith("error: ") and "00003.webp: not a readable picture" in last
        assert not list((tmp_path / name).glob("cache/*/*"))
