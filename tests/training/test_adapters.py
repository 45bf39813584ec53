"""The commands that train a part of a model: what they leave, that a run goes on to the bit, what they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import sdjax
from sdjax.data.source import open_data
from sdjax.formats.tensors import read_tensors
from sdjax.networks.hed.names import hed_names
from tests.hed import hed_arrays
from tests.narrow import random_model_params
from tests.scripts import CONFIG, ROOT

pytestmark = pytest.mark.usefixtures("quick_compile")

COMMON = ("--model", "model", "--data", "pictures", "--batch-size", 4, "--log-every", 1, "--optimizer", "lion")
LORA, EMBEDDING, CONTROL = (f"train/train_{name}.py" for name in ("lora", "embedding", "controlnet"))

CANNY = ("--control-preprocess", "canny")


def leaves(folder):
    return {
        f"{path.relative_to(folder)} {name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in read_tensors(path).items()
    }


def goes_on(script, place, name, out, *more):
    """Runs a command for 3 steps, and again from its checkpoint of step 2 as if killed behind it; the export."""
    common = (*COMMON, "--steps", 3, "--checkpoint-every", 2, "--learning-rate", 1e-2, *more)
    assert script(name, *common, "--out", out, "--sample-every", 3, "--sample-prompts", 2) == 0
    assert script(name, *common, "--out", out, "--sample-every", 3, "--sample-prompts", 2) == 0  # nothing is left to do
    shutil.copytree(place / out, place / "parts" / out)
    for gone in ("checkpoints/3", "export"):
        shutil.rmtree(place / "parts" / out / gone)
    assert script(name, *common, "--out", place / "parts" / out, "--sample-every", 0) == 0
    whole, parts = leaves(place / out / "export"), leaves(place / "parts" / out / "export")
    assert whole.keys() == parts.keys() and whole
    for key, value in whole.items():
        np.testing.assert_array_equal(value, parts[key], err_msg=key)
    records = [json.loads(line) for line in (place / out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3] and all(record["grad_norm"] > 0 for record in records)
    assert Image.open(place / out / "samples" / "3.png").width > 16
    assert not [path for path in (place / out).rglob("*") if ".tmp" in path.name or path.name.startswith(".")]
    return place / out / "export"


def test_train_lora(script, place, capfd):
    """DoRA of all layers and of the text tower, shuffled captions, a prior that the model draws first."""
    flags = ("--rank", 2, "--kind", "dora", "--targets", "all", "--text-learning-rate", 5e-3, "--shuffle-captions")
    flags += ("--prior-prompt", "an apple", "--prior-images", 3, "--validation", 2, "--accumulate", 2)
    export = goes_on(script, place, LORA, "zorp", *flags)
    assert {path.name for path in export.iterdir()} == {"zorp.safetensors", "diffusers"}
    before = sdjax.load(place / "model")
    after = sdjax.add_lora(before, export / "zorp.safetensors")
    differ = {
        key[0]
        for key, leaf in flatten_dict(after.params).items()
        if np.abs(np.asarray(leaf) - flatten_dict(before.params)[key]).max() > 1e-4
    }
    assert differ == {"unet", "text"}
    prior = place / "zorp" / "prior"
    assert {path.name for path in prior.glob("*.png")} == {f"0000{i}.png" for i in range(3)}
    first = (prior / "00001.png").read_bytes()
    (prior / "00001.png").unlink()
    (prior / "metadata.jsonl").unlink()
    assert script(LORA, *COMMON, "--steps", 3, "--out", "zorp", "--learning-rate", 1e-2, *flags) == 0
    assert (prior / "00001.png").read_bytes() == first and (prior / "metadata.jsonl").is_file()
    capfd.readouterr()
    changed = ["a pear" if flag == "an apple" else flag for flag in flags]
    assert script(LORA, *COMMON, "--steps", 3, "--out", "zorp", *changed) == 2
    assert "--prior-prompt 'a pear'" in capfd.readouterr().err.strip().splitlines()[-1]
    for broken in ("no JSON", "[]", "{}"):
        (prior / "prior.json").write_text(broken)
        assert script(LORA, *COMMON, "--steps", 3, "--out", "zorp", *flags) == 2
        assert "--prior-prompt: zorp/prior/prior.json is no" in capfd.readouterr().err.strip().splitlines()[-1]


def test_lora_goes_on_from_a_file_in_another_layout(script, place):
    """fsdp and bfloat16; kohya's folders."""
    folder = place / "kohya" / "2_zorp"
    folder.mkdir(parents=True)
    for path in sorted((place / "pictures").glob("*.webp"))[:4]:
        shutil.copy(path, folder)
    (folder / "00001.txt").write_text("a zorp, an apple\n")
    source = open_data(place / "kohya", 8)
    assert set(source.texts) == {"zorp", "a zorp, an apple"} and source.repeated(source.groups[0]).tolist() == [
        *(0, 0, 1, 1, 2, 2, 3, 3)
    ]
    common = ("--model", "model", "--data", "kohya", "--batch-size", 4, "--steps", 1, "--sample-every", 0)
    assert script(LORA, *common, "--out", "one", "--rank", 2, "--alpha", 1) == 0
    common = (*common, "--dtype", "bfloat16", "--parallel", "fsdp", "--remat", "--dropout", 0.2)
    assert script(LORA, *common, "--out", "two", "--init", "one/export/one.safetensors") == 0
    one, two = (read_tensors(place / name / "export" / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[key].shape == two[key].shape for key in one)
    assert {float(value) for key, value in two.items() if key.endswith("alpha")} == {1.0}
    moved = [np.abs(one[key] - two[key]).max() for key in one if key.endswith("up.weight")]
    assert 0 < max(moved) < 3e-4 and len(moved) == 8


def test_train_embedding(script, place):
    flags = ("--token", "<emoji>", "--init-word", "apple", "--vectors", 2)
    export = goes_on(script, place, EMBEDDING, "word", *flags)
    assert {path.name for path in export.iterdir()} == {"emoji.safetensors"}
    sd = sdjax.load(place / "model")
    ((name, value),) = read_tensors(export / "emoji.safetensors").items()
    assert name == "<emoji>" and value.shape == (2, 24)
    ids = sdjax.tokenize(sd, "apple")[0]
    table = np.asarray(sd.params["text"]["token_embedding"]["embedding"])
    assert 0.005 < np.abs(value[0] - table[ids[1]]).max() < 0.05
    found = sdjax.add_embedding(sd, export / "emoji.safetensors")
    np.testing.assert_array_equal(found.embeddings["<emoji>"], value)
    assert all(a is b for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(sd.params), strict=True))


CONTROLLED = replace(CONFIG, size=16, vae=replace(CONFIG.vae, channels=(8, 8)))  # a VAE of a factor of 2


@pytest.fixture(scope="module")
def edges(place):
    """A folder with a picture for the control beside each picture, of another size; and a model, "controlled"."""
    sd = sdjax.StableDiffusion(CONTROLLED, random_model_params(CONTROLLED), sdjax.load(place / "model").tokenizer)
    sdjax.save(sd, place / "controlled")
    folder = place / "edges"
    shutil.copytree(place / "pictures", folder)
    lines = []
    for line in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines()):
        name = f"{Path(line['file_name']).stem}-edges.png"
        Image.open(folder / line["file_name"]).convert("L").resize((32, 32)).save(folder / name)
        lines.append(json.dumps(line | {"control_file_name": name}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_train_controlnet(script, place, edges):
    export = goes_on(
        script, place, CONTROL, "control", "--model", "controlled", "--data", edges, "--flip", "--views", 2
    )
    assert {path.name for path in export.iterdir()} == {
        *("config.json", "diffusion_pytorch_model.safetensors", "single")
    }
    sd = sdjax.load(place / "controlled")
    control, single = sdjax.load_control(export), sdjax.load_control(export / "single" / "control.safetensors", sd)
    assert control.config == single.config
    for a, b in zip(jax.tree.leaves(control.params), jax.tree.leaves(single.params), strict=True):
        np.testing.assert_array_equal(a, b)
    picture = Image.open(edges / "00000-edges.png")
    options = {"control": control, "control_image": picture, "steps": 2, "output": "latents"}
    assert np.abs(np.asarray(control.params["zero_mid"]["kernel"])).max() > 1e-3
    plain, drawn = (
        sdjax.txt2img(sd, "a red apple", steps=2, output="latents"),
        sdjax.txt2img(sd, "a red apple", **options),
    )
    assert np.abs(np.asarray(drawn) - plain).max() > 1e-3


def test_a_control_begins_as_nothing(place, edges):
    """Its residuals are 0, its copy is the UNet's, and two pictures' embeddings already differ."""
    from sdjax.networks.control.network import ControlNet, Hint
    from sdjax.training.control import control_config, initial_control

    sd = sdjax.load(place / "controlled")
    config = control_config(sd.config)
    assert config.factor == sd.config.vae.factor
    params = initial_control(config, sd.params["unet"], 0)
    np.testing.assert_array_equal(
        params["mid_res_0"]["conv1"]["kernel"], sd.params["unet"]["mid_res_0"]["conv1"]["kernel"]
    )
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), rng.normal(size=(2, 12, 24)).astype(np.float32)
    hints = rng.uniform(0, 1, (2, 8 * config.factor, 8 * config.factor, 3)).astype(np.float32)
    found = ControlNet(config).apply({"params": params}, x, np.array([1, 2]), context, hints)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found))
    _, states = Hint(config).apply(
        {"params": params["hint"]}, hints, capture_intermediates=True, mutable=["intermediates"]
    )
    (last,) = states["intermediates"][f"conv_{2 * len(config.hint) - 3}"]["__call__"]
    assert np.abs(last[0] - last[1]).max() > 0.05 * np.abs(last).max()


def test_pictures_that_are_made_on_the_way(place):
    from sdjax.data.order import Chosen
    from sdjax.training.control import pictures_given

    source = open_data(place / "pictures", 8)
    rows = np.array([3, 0])
    found = pictures_given(source, "invert", (), 1)(rows, Chosen(rows, np.zeros(2, int), 0))
    np.testing.assert_array_equal(found, 255 - np.stack([source[3]["pixels"], source[0]["pixels"]]))
    weights, arrays = {}, hed_arrays()
    for (layer, kind), name in hed_names().items():
        weights.setdefault(layer, {})[kind] = arrays[name]
    found = pictures_given(source, "hed", (weights,), 1)(rows, Chosen(rows, np.zeros(2, int), 0))
    np.testing.assert_array_equal(found[1], sdjax.preprocess.hed(source[0]["pixels"], weights))


@pytest.mark.parametrize(
    "name, flags, said",
    [
        (LORA, ("--rank", 0), "--rank 0: expected at least 1"),
        (LORA, ("--alpha", -1), "--alpha -1.0: expected a positive number"),
        (LORA, ("--dropout", 1), "--dropout 1.0: expected a number in [0, 1)"),
        (LORA, ("--dropout", 0.1, "--kind", "loha"), "--dropout 0.1: of kind lora or locon"),
        (LORA, ("--kind", "oft"), "--kind"),
        (LORA, ("--text-learning-rate", 0), "--text-learning-rate 0.0: expected a positive number"),
        (LORA, ("--keep-tokens", 1), "--keep-tokens 1: expected a number from 0 on, with --shuffle-captions"),
        (
            LORA,
            ("--prior", "pictures", "--prior-prompt", "x"),
            "--prior pictures: give either a folder or --prior-prompt",
        ),
        (LORA, ("--prior-weight", 2), "--prior-weight 2.0: needs --prior or --prior-prompt"),
        (LORA, ("--prior-images", 5), "--prior-images 5: needs --prior-prompt"),
        (LORA, ("--prior", "nowhere"), "--prior nowhere: no such folder"),
        (LORA, ("--prior", "pictures", "--batch-size", 3), "--batch-size 3: with a prior, an even number"),
        (LORA, ("--prior", "pictures", "--buckets"), "--buckets: not with a prior"),
        (LORA, ("--init", "nowhere.safetensors"), "error: --init nowhere.safetensors: no such LoRA file"),
        (LORA, ("--init", "pictures/00003.webp"), "error: --init pictures/00003.webp: "),
        (LORA, ("--out", "mine"), "mine/export exists and has no mine.safetensors"),
        (EMBEDDING, (), "--token '': a word of letters"),
        (EMBEDDING, ("--token", "a b"), "--token 'a b': a word of letters"),
        (EMBEDDING, ("--token", "<zorp>"), "--token <zorp>: no caption of pictures has it"),
        (EMBEDDING, ("--token", "<emoji>", "--vectors", 11), "--vectors 11: a prompt of model takes 10"),
        (EMBEDDING, ("--token", "<emoji>", "--init-word", ""), "--init-word '': a word expected"),
        (CONTROL, (), "--model model: a ControlNet is for a UNet of text and a VAE of a factor of 2, 4 or 8"),
        (CONTROL, ("--model", "controlled"), 'no line has "control_file_name"'),
        (CONTROL, ("--canny-low", 3), "--canny-low 3.0: needs --control-preprocess canny"),
        (CONTROL, (*CANNY, "--canny-low", 300), "--canny-low 300: not above --canny-high, 200"),
        (CONTROL, (*CANNY, "--canny-high", "nan"), "--canny-high nan: a number from 0 on"),
        (CONTROL, ("--control-preprocess", "hed"), "--control-preprocess hed: needs --hed"),
        (CONTROL, ("--hed", "a.h5"), "--hed a.h5: needs --control-preprocess hed"),
        (CONTROL, ("--control-preprocess", "pose"), "--control-preprocess"),
    ],
)
def test_refusals(script, place, edges, capfd, name, flags, said):
    (place / "mine" / "export").mkdir(parents=True, exist_ok=True)
    defaults = [] if "--out" in flags else ["--out", "refused"]
    assert script(name, *COMMON, "--steps", 1, "--sample-every", 0, *defaults, *flags) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error, error


def test_dry_run(script, place, capfd):
    """The base is counted apart from the state; a step is compiled with it as an argument."""
    for name, flags in ((LORA, ("--text-learning-rate", 1e-4)), (EMBEDDING, ("--token", "<emoji>"))):
        assert script(name, *COMMON, "--out", "dry", "--dry-run", *flags) == 0
        said = capfd.readouterr().out
        assert "frozen      " in said and "memory      " in said


def test_launchers_are_in_the_list_of_commands():
    from sdjax.commands.main import COMMANDS

    for name in ("lora", "embedding", "controlnet"):
        assert COMMANDS[f"train {name}"][0] == f"train_{name}" and (ROOT / "train" / f"train_{name}.py").is_file()
