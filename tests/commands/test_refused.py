"""What the scripts refuse, each in one line.

They run inside of the tests' process, which has imported and compiled already; what has to hold in a fresh one is
tried in a fresh one.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import sdjax
from sdjax.training.options import TrainOptions
from sdjax.training.run import Run
from tests.narrow import random_model_params
from tests.scripts import CONFIG, GENERATE, ROOT, TRAIN, arguments

pytestmark = pytest.mark.usefixtures("quick_compile")


ANY_TRAIN = [
    ({"--model": "nowhere"}, "--model: nowhere: no such folder"),
    ({"--data": None}, "--data"),
    ({"--data": "nowhere"}, "--data nowhere"),
    ({"--data": "model"}, "no metadata.jsonl"),
    ({"--steps": 0}, "--steps 0"),
    ({"--steps": "x"}, "--steps"),
    ({"--out": "file"}, "--out file: cannot be written"),
    ({"--out": "gs://bucket/run"}, "--out gs:/bucket/run: a folder of this machine expected"),
    ({"--bogus": 1}, "--bogus"),
    ({"--optimizer": "adam"}, "--optimizer adam"),
    ({"--decay": "step"}, "--decay step"),
    ({"--out": None}, "--out"),
    ({"--batch-size": 0}, "--batch-size 0"),
    ({"--accumulate": 0}, "--accumulate 0"),
    ({"--parallel": "ddp"}, "--parallel ddp: expected pmap or fsdp"),
    ({"--max-bad": 2}, "--max-bad 2"),
    ({"--coordinator": "here"}, "--coordinator here: expected HOST:PORT"),
    ({"--coordinator": "auto", "--num-processes": 2, "--process-id": 0}, "--coordinator auto: the cluster tells"),
    ({"--replicas": 3}, "--replicas 3: needs --parallel fsdp"),
]
REFUSED = [
    *[
        ("sample/generate.py", GENERATE, *case)
        for case in [
            ({"--model": "nowhere"}, "--model: nowhere: no such folder"),
            ({"--sampler": "eular"}, "--sampler"),
            ({"--steps": 0}, "--steps"),
            ({"--out": "file"}, "--out file: cannot be written"),
            ({"--out": "s3://bucket/out"}, "--out s3:/bucket/out: a folder of this machine expected"),
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
            ({"--validation": "nowhere"}, "--validation nowhere: no such folder"),
            ({"--views": 0}, "--views 0: expected at least 1"),
            ({"--views": 2}, "--views 2: all would be the same, give --flip or --crop random with it"),
            ({"--size": -1}, "--size -1: expected a positive multiple of 1"),
            ({"--size": 0}, "--size 0: expected a positive multiple of 1"),
            ({"--model": "SD15_INPAINT"}, "--model SD15_INPAINT: its UNet has 9 input channels"),
            ({"--model": "inpainting"}, "--model inpainting: its UNet has 9 input channels"),
            ({"--dtype": "float16"}, "--dtype float16: expected float32 or bfloat16"),
            ({"--zero-terminal-snr": "--no-remat"}, "--zero-terminal-snr: pure noise says nothing of eps"),
            ({"--min-snr-gamma": 0}, "--min-snr-gamma 0"),
            ({"--sample-prompts": 0}, "--sample-prompts 0"),
        ]
    ],
    *[
        ("train/train_vae.py", TRAIN, *case)
        for case in [
            *ANY_TRAIN,
            ({"--loss": "l3"}, "--loss l3"),
            ({"--discriminator-weight": -1}, "--discriminator-weight -1"),
            ({"--discriminator-weight": 1}, "--discriminator-weight: needs pictures of 24"),
            ({"--size": -3}, "--size -3"),
            ({"--size": 0}, "--size 0"),
            ({"--perceptual-weight": 0.5}, "--perceptual-weight 0.5: needs --vgg"),
            ({"--perceptual-size": 16}, "--perceptual-size 16: needs --vgg and --lpips, or --hed"),
            ({"--hed": "file", "--perceptual-size": 15}, "--perceptual-size 15: expected at least 16 pixels"),
            ({"--hed": "file", "--size": 24, "--perceptual-size": 25}, "--perceptual-size 25: more than the 24 pixels"),
            ({"--hed": "file", "--size": 12}, "--hed: needs pictures of 16 pixels"),
            ({"--hed": "file", "--size": 16}, "file: "),
            ({"--hed": "file", "--vgg": "file", "--lpips": "file"}, "--hed: takes the place of --vgg and --lpips"),
            ({"--channels": "8,x"}, "--channels 8,x: expected a number for each level"),
            ({"--channels": "8,6"}, "--channels 6: not a multiple of 4"),
            ({"--channels": "8", "--freeze-encoder": "--flip"}, "--channels 8: a new encoder cannot stay"),
            ({"--channels": "8", "--latent-noise": "0.2"}, "--latent-noise 0.2: a new VAE has no scaling yet"),
            ({"--like": "nowhere"}, "--like: nowhere: no such"),
            ({"--like-weight": 2}, "--like-weight 2.0: needs --like"),
            ({"--discriminator-start": 9}, "--discriminator-start 9: needs --discriminator-weight"),
            ({"--vgg": "file"}, "--lpips: is missing"),
            ({"--lpips": "file"}, "--vgg: is missing"),
            ({"--vgg": "file", "--lpips": "file", "--size": 16}, "file: "),
            ({"--crop": "left"}, "--crop left"),
            ({"--dtype": "int8"}, "--dtype int8"),
            ({"--max-bad": 2}, "--max-bad 2"),
        ]
    ],
    *[("train/train_clip.py", TRAIN, *case) for case in ANY_TRAIN],
    *[
        ("sample/compile.py", {"--model": "model", "--out": "a.sdjax"}, *case)
        for case in [
            ({"--num-images": 0}, "--num-images 0: a whole number from 1"),
            ({"--height": 0}, "--height 0: "),
            ({"--platforms": "abacus"}, "--platforms abacus: some of cpu"),
            ({"--model": "inpainting"}, "--model inpainting: programs are of models that take text alone"),
            ({"--out": "file/a"}, "file/a: cannot be"),
        ]
    ],
]


@pytest.fixture(scope="module", autouse=True)
def inpainting(place):
    """The model with a UNet of 9 input channels."""
    config, tokenizer = replace(CONFIG, unet=replace(CONFIG.unet, in_channels=9)), sdjax.load(place / "model").tokenizer
    sdjax.save(sdjax.StableDiffusion(config, random_model_params(config), tokenizer), place / "inpainting")


@pytest.mark.parametrize("name, defaults, changes, message", REFUSED, ids=lambda value: str(value)[:40])
def test_refusals_are_one_line_that_names_the_flag(script, place, capfd, name, defaults, changes, message):
    before = {path for path in place.rglob("*") if path.name in ("config.json", "metrics.jsonl", "export")}
    assert script(name, *arguments(name, defaults, changes)) == 2
    found = capfd.readouterr()
    *lines, last = found.err.splitlines()
    assert last.startswith("error: ") and message in last and not found.out
    assert all(line.startswith("loading ") for line in lines)
    assert before == {path for path in place.rglob("*") if path.name in ("config.json", "metrics.jsonl", "export")}
    assert (place / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name, defaults, changes",
    [
        ("sample/generate.py", GENERATE, {"--bogus": 1}),
        ("sample/generate.py", GENERATE, {"--model": "nowhere"}),
        ("train/train_diffusion.py", TRAIN, {"--data": None}),
        ("train/train_clip.py", TRAIN, {"--data": "nowhere"}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refusals_in_a_fresh_process(place, name, defaults, changes):
    command = [sys.executable, ROOT / name, *arguments(name, defaults, changes)]
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=where, capture_output=True, text=True)
    *lines, last = done.stderr.splitlines()
    assert done.returncode == 2 and last.startswith("error: "), done.stderr
    assert all(line.startswith("loading ") for line in lines), done.stderr


def test_an_unreadable_picture_is_named_last(script, place, capfd, tmp_path):
    """A progress bar may come before it, on lines of its own."""
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures" / "00003.webp").write_bytes(b"no picture")
    for name in ("train/train_diffusion.py", "train/train_vae.py"):
        assert script(name, *arguments(name, TRAIN, {"--data": tmp_path / "pictures", "--out": tmp_path / name})) == 2
        last = capfd.readouterr().err.rstrip("\n").split("\n")[-1]
        assert last.startswith("error: ") and "00003.webp: not a readable picture" in last
        assert not list((tmp_path / name).glob("cache/*/*"))


def test_a_second_start_leaves_the_first_one_s_files_alone(script, place, capfd):
    """It is refused before it caches anything."""
    run = Run(place / "held", TrainOptions(Path("pictures"), Path("held")))
    for name in ("train/train_diffusion.py", "train/train_vae.py", "train/train_clip.py"):
        assert script(name, *arguments(name, TRAIN, {"--out": "held"})) == 2
        assert "another process is training there" in capfd.readouterr().err
    run.close()
    assert [path.name for path in (place / "held").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "line, said",
    [
        ("a cat --negative", "no text behind --negative"),
        ("--negative dog", "no prompt before --negative"),
        ("--negative", "no prompt before --negative"),
    ],
)
def test_a_line_with_half_of_a_negative_prompt(script, place, capfd, line, said):
    (place / "lines.txt").write_text(f"a dog --negative a cat\n\n{line}\n")
    assert script("sample/generate.py", "--model", "model", "--prompts-file", "lines.txt", "--out", "lines") == 2
    assert f"error: --prompts-file lines.txt line 3: {said}" in capfd.readouterr().err
