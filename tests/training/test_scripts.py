"""The training scripts: what a run leaves in its folder.

They run inside of the tests' process, which has imported and compiled already; what has to hold in a fresh one is
tried in a fresh one.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sdjax
from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.errors import SdjaxError
from sdjax.networks.lpips.names import lpips_rows
from sdjax.networks.lpips.network import LPIPS
from sdjax.weights.convert import OPERATIONS
from sdjax.weights.lpips import read_lpips
from tests.hed import write_hed
from tests.narrow import NARROW_VISION, random_params
from tests.scripts import CONFIG, TRAIN, arguments

pytestmark = pytest.mark.usefixtures("quick_compile")


def changed(sd, trained):
    """Which parts of a model differ."""
    differ = lambda a, b: any(jax.tree.leaves(jax.tree.map(lambda x, y: (np.asarray(x) != np.asarray(y)).any(), a, b)))
    return {part for part in sd.params if differ(sd.params[part], trained.params[part])}


def train(script, place, name, steps, *arguments):
    """Trains to a new folder and checks what every training script leaves; (its folder, its records, the export)."""
    out = place / Path(name).stem
    command = [
        name,
        "--model",
        "model",
        "--data",
        "pictures",
        "--out",
        out,
        "--steps",
        steps,
        "--batch-size",
        8,
        "--log-every",
        1,
        "--learning-rate",
        1e-3,
        "--warmup",
        0,
        "--optimizer",
        "lion",
        *arguments,
    ]
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


def test_train_diffusion(script, place, monkeypatch, capfd):
    drawn, txt2img = [], sdjax.txt2img
    monkeypatch.setattr(
        sdjax,
        "txt2img",
        lambda *args, **more: drawn.append((more["syntax"], more.get("guidance_scale"))) or txt2img(*args, **more),
    )
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
        *["--flip", "--views", 1],
    )
    assert "--views 1: each picture is cropped and flipped once" in capfd.readouterr().err
    sd = sdjax.load(place / "model")
    assert changed(sd, trained) == {"unet"}
    assert trained.config == replace(
        CONFIG, name="export", schedule=ScheduleConfig(prediction="v", zero_terminal_snr=True)
    )
    assert Image.open(out / "samples" / "3.png").width > 2 * 8 and drawn == [("plain", None)]
    assert ["validation_loss" in record for record in records] == [False, False, True]
    latents, states = sorted((out / "cache").iterdir())
    load = lambda folder: np.load(folder / "00000.npy")
    assert load(latents).shape == (16, 8, 8, 8) and load(states).shape[1:] == (12, 24)
    assert len({record["learning_rate"] for record in records}) == 1


def test_dry_run(script, place, capfd):
    """It ends before a picture is read. Pictures that are cropped at random have several views."""
    for parallel, crop, views in (("pmap", "center", 1), ("fsdp", "random", 4)):
        flags = {
            "--crop": crop,
            "--out": "dry",
            "--dry-run": "--remat",
            "--parallel": parallel,
            "--validation": 3,
            "--size": 16,
        }
        assert script("train/train_diffusion.py", *arguments("train", TRAIN, flags)) == 0
        said = capfd.readouterr().out
        assert '"dry_run": true' in said and f"1 process, {parallel}" in said and "memory      " in said
        assert f'"views": {views}' in said
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


def test_train_a_new_vae_like_another(script, place, tmp_path):
    """Another number of levels, so pictures of another size; its latents come near those of the model's VAE.

    With HED's features of a random part of each picture.
    """
    from sdjax.commands import train_vae

    pytest.importorskip("h5py")

    settings = TRAIN | {
        "--out": tmp_path / "run",
        "--steps": 30,
        "--log-every": 1,
        "--sample-every": 0,
        "--learning-rate": 3e-3,
        "--channels": "8,8,4",
        "--like": "model",
        "--like-weight": 3,
        "--hed": write_hed(tmp_path / "hed.h5"),
        "--perceptual-weight": 0.1,
        "--perceptual-size": 16,
    }
    assert script("train/train_vae.py", *arguments("train", settings, {})) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = records[0], records[-1]
    wanted = first["reconstruction"] + 1e-6 * first["kl"] / (32 * 32 * 3) + 3 * first["apart"]
    wanted += 0.1 * first["perceptual"]
    assert abs(first["loss"] - wanted) < 1e-4 * wanted and last["apart"] < 0.8 * first["apart"]
    trained = sdjax.load(tmp_path / "run" / "export")
    assert trained.config.vae.channels == (8, 8, 4) and trained.config.size == 4 * CONFIG.size // CONFIG.vae.factor
    rest = [
        replace(sd, params={part: sd.params[part] for part in ("text", "unet")})
        for sd in (sdjax.load(place / "model"), trained)
    ]
    assert not changed(*rest)
    for other in (replace(CONFIG.vae, latent_channels=3), replace(CONFIG.vae, channels=(8, 8))):
        with pytest.raises(SdjaxError, match="--like emoji: its latents have 4 channels and f = 8; the VAE's have"):
            train_vae.other_vae("emoji", other)


def test_the_scaling_is_found_in_small_parts(place, monkeypatch):
    """It is that of all pictures, and no more than a step's share of a device goes through at once."""
    from sdjax.commands import train_vae

    vae, seen, posterior = sdjax.load(place / "model").params["vae"], [], train_vae.vae_posterior
    monkeypatch.setattr(train_vae, "vae_posterior", lambda *args: seen.append(len(args[1])) or posterior(*args))
    batches = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 8, 3)).astype(np.float32)
    found = train_vae.unit_scaling(vae, CONFIG.vae, batches, 2)
    assert seen == [2] * 12
    mean, _ = posterior(vae, batches.reshape(24, 8, 8, 3), CONFIG.vae)
    assert abs(found * np.std(mean) - 1) < 1e-4


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
    monkeypatch.setattr("sdjax.commands.train_vae.read_lpips", lambda vgg, heads: read_lpips(vgg, heads, widths))
    name = "train/train_vae.py"
    settings = TRAIN | {
        "--out": tmp_path / "run",
        "--steps": 4,
        "--log-every": 1,
        "--sample-every": 0,
        "--size": 24,
        "--vgg": tmp_path / "vgg.safetensors",
        "--lpips": tmp_path / "lpips.safetensors",
        "--discriminator-weight": 0.5,
        "--discriminator-start": 2,
        "--loss": "l2",
    }
    assert script(name, *arguments(name, settings, {}), "--freeze-encoder", "--flip", "--crop", "random") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        before = record["reconstruction"] + record["perceptual"] + 1e-6 * record["kl"] / 1728
        term = 0.5 * record["adaptive_weight"] / 1728 * -record["realism"] + record["critic_loss"]
        assert abs(record["loss"] - before - (term if record["step"] > 2 else 0)) < 1e-4
    sd, trained = sdjax.load(place / "model"), sdjax.load(tmp_path / "run" / "export")
    assert trained.config == replace(CONFIG, name="export") and changed(sd, trained) == {"vae"}
    parts = {
        part: sdjax.StableDiffusion(CONFIG, {part: trained.params["vae"][part]}, None)
        for part in ("encoder", "decoder")
    }
    assert not changed(parts["encoder"], sdjax.StableDiffusion(CONFIG, {"encoder": sd.params["vae"]["encoder"]}, None))


def test_train_clip(script, place, monkeypatch):
    monkeypatch.setattr("sdjax.commands.train_clip.EMOJI_VISION", NARROW_VISION)
    out, records, trained = train(script, place, "train/train_clip.py", 2)
    assert changed(sdjax.load(place / "model"), trained) == {"text"}
    assert all(0 <= record["retrieval"] <= 1 for record in records)
    vision, head = sdjax.load_clip(out / "export" / "clip")
    assert vision.projection == CONFIG.text.width == head["text_projection"].shape[1]
    assert (
        set(head) == {"vision", "text_projection", "logit_scale"} and abs(head["logit_scale"] - np.log(1 / 0.07)) < 0.1
    )


def test_half_of_a_clip_batch_is_alike(script, place, monkeypatch, tmp_path, capfd):
    from sdjax.commands.train_clip import Options, half_alike

    records = [{"file_name": "x", "text": f"thing {i % 40}", "style": i % 3, "ground": i % 2} for i in range(600)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    options = Options(data=tmp_path, out=tmp_path, batch_size=32, alike="style,ground")
    choose = half_alike(options, tuple(record["text"] for record in records))
    first, *others = (choose(step).rows for step in range(20))
    for rows in (first, *others):
        alike = [records[row] for row in rows[:16]]
        assert len(rows) == 32 and len({(r["style"], r["ground"]) for r in alike}) == 1
        assert len({r["text"] for r in alike}) == 16
    assert len({tuple((records[rows[0]][name]) for name in ("style", "ground")) for rows in others}) > 3
    np.testing.assert_array_equal(first, choose(0).rows)
    monkeypatch.setattr("sdjax.commands.train_clip.EMOJI_VISION", NARROW_VISION)
    name = "train/train_clip.py"
    assert script(name, *arguments(name, TRAIN, {"--alike": "colour"})) == 2
    assert "--alike colour: no line of metadata.jsonl has a field 'colour'" in capfd.readouterr().err
    records[7]["style"] = ["flat", "old"]
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(json.dumps(record).encode() for record in records))
    with pytest.raises(SdjaxError, match=r"--alike style,ground: .* several values in the field 'style' of x"):
        half_alike(options, tuple(record["text"] for record in records))
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "x", "text": "\xff", "style": 1, "ground": 2}')
    assert half_alike(options, ("?",))(0).rows[0] == 0  # as the listing reads it
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "x", "text": "a", "style": 1, "ground": 2}')
    assert half_alike(options, ("a",))(0).rows[0] == 0  # with the mark that Windows' editors put in front


def test_bundle_refuses_what_float16_does_not_hold_before_it_writes(script, place, capfd, tmp_path):
    sd = sdjax.load(place / "model")
    large = sd.params["vae"] | {"decoder": jax.tree.map(lambda leaf: leaf * 0 + 1e5, sd.params["vae"]["decoder"])}
    sdjax.save(replace(sd, params=sd.params | {"vae": large}), tmp_path / "large")
    sdjax.save_clip(
        {
            "vision": random_params(NARROW_VISION),
            "logit_scale": np.float32(1),
            "text_projection": np.ones((sd.config.text.width, NARROW_VISION.projection), np.float32),
        },
        NARROW_VISION,
        tmp_path / "clip",
    )
    (tmp_path / "out").mkdir()
    given = "--clip", tmp_path / "clip", "--out", tmp_path / "out"
    assert script("train/bundle.py", "--model", tmp_path / "large", *given) == 2
    assert "float16" in capfd.readouterr().err and not list((tmp_path / "out").iterdir())
    for _ in range(2):
        assert script("train/bundle.py", "--model", place / "model", *given) == 0
        (tmp_path / "out" / "README.md").write_text("mine")
    assert sdjax.load(tmp_path / "out").params["text"]["token_embedding"]["embedding"].dtype == np.float16
    assert sdjax.load_clip(tmp_path / "out" / "clip")[1]["logit_scale"] == 1
