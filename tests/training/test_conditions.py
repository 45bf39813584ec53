"""Training on classes, layouts, maps and nothing: runs of two steps, what is dropped, and rows that do not fit."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.conditioning.layouts import layout_tokens
from sdjax.data.beside import FilesBeside
from sdjax.data.columns import BOXES, CLASS, MAP
from sdjax.data.order import Chosen
from sdjax.data.source import open_data
from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.errors import SdjaxError
from sdjax.training.beside import lowres_cond, maps_given, masks_given, random_mask
from sdjax.training.conditions import CONDITIONS, conditioned, conditioner, layouts_given, starting_params
from sdjax.types import Batch
from tests.kinds import LAYOUT, SR, TEXT_MAP, X4, model
from tests.kinds import MAP as TINY_MAP
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

NAME = "train/train_diffusion.py"
BOX = [1, 0.25, 0.0, 0.75, 0.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """16 pictures of 16 x 16 with all columns: the class is the row's number modulo 3."""
    folder, rng, lines = tmp_path_factory.mktemp("conditions"), np.random.default_rng(0), []
    for i in range(16):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) // (64 + i)).save(folder / f"map{i}.png")
        boxes = [BOX, [2, 0.0, 0.5, 0.5, 1.0]][: i % 3]
        np.save(folder / f"depth{i}.npy", rng.normal(size=(16, 16)).astype(np.float32))
        row = {"file_name": f"{i}.png", "text": f"a {'cat' if i % 2 else 'dog'}", "class": i % 3, "boxes": boxes}
        lines.append(row | {"map_file_name": f"map{i}.png", "depth_file_name": f"depth{i}.npy"})
    write(folder, lines)
    return folder


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def train(script, folder, out, *arguments):
    common = "--model", "model", "--data", folder, "--out", out, "--steps", 2, "--batch-size", 8, "--size", 16
    return script(NAME, *common, "--warmup", 0, "--sample-every", 0, "--learning-rate", 1e-2, *arguments)


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "text"])
def test_a_run_exports_a_model_of_its_condition(condition, script, place, folder):
    out = place / f"run-{condition}"
    sampled = ["--sample-every", 2] if condition in ("layout", "none") else []
    assert train(script, folder, out, "--condition", condition, *sampled) == 0
    sd, base = sdjax.load(out / "export"), sdjax.load(place / "model")
    part, asked = CONDITIONS[condition].part, None
    if condition == "class":
        assert sd.config.classes == 4 and sd.config.null and sd.config.guidance_scale == 3.0
        asked = sdjax.encode_classes(sd, [0, 2])
    elif condition == "layout":
        assert (sd.config.layout.objects, sd.config.layout.labels, sd.config.null) == (2, 3, True)
        asked = sdjax.encode_layout(sd, [[], [BOX]])
    elif condition == "map":
        assert sd.config.text == base.config.text and sd.config.map.classes == 4 and sd.tokenizer is not None
        asked = sdjax.encode_map(sd, np.zeros((2, 16, 16), int)) | sdjax.encode_prompt(sd, ["cat", "dog"])
    elif condition == "depth":
        asked = sdjax.encode_depth(sd, np.eye(16)[None].repeat(2, 0)) | sdjax.encode_prompt(sd, ["cat", "dog"])
    elif condition == "mask":
        asked = sdjax.encode_mask(sd, np.zeros((2, 16, 16, 3), np.float32), np.eye(16))
    elif condition == "lowres":
        side = 16 // sd.config.vae.factor
        asked = sdjax.encode_lowres(sd, np.zeros((2, side, side, 3), np.float32))
        assert sd.config.unet.labels == 1000 and sd.config.guidance_scale == 9.0
    else:
        assert not sd.config.unet.cross and sd.config.text is None and not sd.config.null
        again = [*("--model", out / "export", "--condition", "none", "--steps", 1), "--sample-every", 0]
        assert train(script, folder, place / "again", *again) == 0, "a model without text is trained on"
        control = ("--data", folder, "--out", place / "control", "--steps", 1, "--control-preprocess", "grey")
        assert script("train/train_controlnet.py", *again[:2], *control) == 2, "but not beside a control"
    if sampled:
        assert (out / "samples" / "2.png").is_file()
    else:
        assert len(sdjax.txt2img(sd, asked, steps=2, height=16, width=16)) == 2
    if part:
        base = replace(base, config=replace(base.config, size=16))
        start = starting_params(conditioned(base, condition, source_of(folder, condition), True), condition, 0)[part]
        differ = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max() > 0, sd.params[part], start)
        assert any(jax.tree.leaves(differ)), "the network that makes the condition was not trained"


def source_of(folder, condition, **options):
    return open_data(folder, 16, column=CONDITIONS[condition].column, captions=False, **options)


def test_without_dropout_there_is_no_null(script, place, folder):
    assert train(script, folder, place / "sure", "--condition", "class", "--caption-dropout", 0) == 0
    sd = sdjax.load(place / "sure" / "export")
    assert not sd.config.null and sd.config.guidance_scale == 1.0
    with pytest.raises(SdjaxError, match="has no null"):
        sdjax.txt2img(sd, sdjax.encode_classes(sd, 0), guidance_scale=3.0, steps=2, height=16, width=16)


def batch_of(given, context=None):
    count = len(given)
    return Batch(np.zeros((count, 8, 8, 8), np.float16), context, np.arange(count, dtype=np.uint32), given)


def test_what_dropped_examples_get():
    drop, key = np.array([True, False]), jax.random.key(0)
    layout, maps = model(LAYOUT), model(TEXT_MAP)
    tokens = np.stack([layout_tokens(LAYOUT.layout, [BOX]), layout_tokens(LAYOUT.layout, [BOX])])
    made = conditioner(LAYOUT, "layout", None)
    _, cond = made({"unet": {}, "layout": layout.params["layout"]}, batch_of(tokens), drop, key)
    want = sdjax.encode_layout(layout, [[], [BOX]]).context
    np.testing.assert_allclose(cond.context, want, atol=1e-6)
    null, context = jnp.full((8, 16), 7.0), np.ones((2, 8, 16), np.float16)
    made = conditioner(TEXT_MAP, "map", null)
    ids = np.arange(512).reshape(2, 16, 16) % 5
    _, cond = made({"unet": {}, "map": maps.params["map"]}, batch_of(ids, context), drop, key)
    assert (cond.context[0] == 7).all() and (cond.context[1] == 1).all()
    np.testing.assert_allclose(cond.concat, sdjax.encode_map(maps, ids).concat, atol=1e-6)


def test_objects_change_their_order_from_step_to_step_and_absent_ones_stay_last():
    config = replace(LAYOUT.layout, length=11)
    boxes = [[0, 0, 0, 0.5, 0.5], [1, 0.5, 0.5, 1, 1]]
    tokens = np.stack([layout_tokens(config, boxes)] * 8)
    made = conditioner(LAYOUT, "layout", None)
    of = lambda key: made(
        {"unet": {}, "layout": model(LAYOUT).params["layout"]}, batch_of(tokens), np.zeros(8, bool), key
    )
    states = of(jax.random.key(0))[1].context
    one, other = (sdjax.encode_layout(model(LAYOUT), [order]).context[0] for order in (boxes, boxes[::-1]))
    near = [[float(np.abs(state - want).max()) < 1e-5 for want in (one, other)] for state in states]
    assert all(sum(pair) == 1 for pair in near) and {pair[0] for pair in near} == {True, False}


def test_crops_and_mirrors_take_boxes_and_maps_along(folder, tmp_path):
    """A wide picture: the crop is told apart, boxes stay relative to the whole, and both are mirrored with it."""
    data = tmp_path / "wide"
    data.mkdir()
    Image.new("RGB", (32, 16)).save(data / "a.png")
    ids = np.arange(32, dtype=np.uint8)[None].repeat(16, 0)
    Image.fromarray(ids).save(data / "map.png")
    write(data, [{"file_name": "a.png", "boxes": [[2, 0.25, 0.0, 0.5, 1.0]], "map_file_name": "map.png"}])
    seen = set()
    for epoch in range(12):
        source = open_data(data, 16, crop="random", flip=True, column=BOXES, captions=False)
        chosen = Chosen(np.array([0]), np.array([epoch]), 0)
        (x0, _, x1, _), mirrored = source.framing(0, 0, epoch, 0)
        assert x1 - x0 == 0.5
        tokens = layouts_given(model(LAYOUT), source, 12)(np.array([0]), chosen)[0]
        mirror = lambda box: (1 - box[2], box[1], 1 - box[0], box[3])
        box, crop = (0.25, 0.0, 0.5, 1.0), (x0, 0.0, x1, 1.0)
        want = (mirror(box), mirror(crop)) if mirrored else (box, crop)
        np.testing.assert_array_equal(tokens, layout_tokens(LAYOUT.layout, [(2, *want[0])], want[1]))
        source = open_data(data, 16, crop="random", flip=True, column=MAP, captions=False)
        source.beside = FilesBeside(source, "map")
        view = maps_given(model(TINY_MAP), source, 12)(np.array([0]), chosen)[0]
        columns = np.arange(32)[int(x0 * 32) : int(x1 * 32)]
        np.testing.assert_array_equal(view[0], columns[::-1] if mirrored else columns)
        seen.add((mirrored, x0))
    assert len(seen) > 4


def test_a_text_model_that_learns_maps_starts_as_it_was(folder):
    base = tiny()
    sd = conditioned(base, "map", source_of(folder, "map"), True)
    params = starting_params(sd, "map", 3)
    assert params["unet"]["conv_in"]["kernel"].shape[2] == 7
    x, t, cond = np.ones((1, 8, 8, 4), np.float32), 500.0, sdjax.encode_prompt(base, "cat")
    maps = sdjax.encode_map(replace(sd, params=sd.params | params), np.ones((1, 16, 16), int))
    now = sdjax.predict(replace(sd, params=sd.params | params), x, t, cond | maps)
    np.testing.assert_allclose(now, sdjax.predict(base, x, t, cond), atol=1e-6)


@pytest.mark.parametrize(
    "column, value, said",
    [
        (CLASS, -1, "class -1, a whole number from 0 on expected"),
        (CLASS, "cat", "class 'cat', a whole number"),
        (CLASS, True, "class True"),
        (CLASS, ..., 'no "class"'),
        (BOXES, [[1, 0, 0, 1, 2]], "boxes[0]: box [0, 0, 1, 2]"),
        (BOXES, 3, "boxes 3: a list of objects"),
        (MAP, "none.png", "map_file_name 'none.png': no such file"),
        (MAP, 5, "map_file_name 5, the name of a file expected"),
        (MAP, "small.png", "its map small.png has 8 x 8 pixels, the picture 16 x 16"),
        (MAP, "colour.png", "its map colour.png: mode RGB: ids are grey values or palette indices"),
        (MAP, "metadata.jsonl", "its map metadata.jsonl: not a readable picture"),
    ],
)
def test_rows_that_do_not_fit_are_set_aside(column, value, said, folder, tmp_path):
    lines = rows(folder)[:3]
    for line in lines:
        line["file_name"] = str(folder / line["file_name"])
        line["map_file_name"] = str(folder / line["map_file_name"])
    lines[1][column.name] = value
    if value is ...:
        del lines[1][column.name]
    write(tmp_path, lines)
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "colour.png")
    source = open_data(tmp_path, 16, 0.5, column=column, captions=False)
    if column is MAP:
        source.beside = FilesBeside(source, "map")
        source.beside.below = source.beside.largest_id() + 1
    assert source.view(1)["index"] == 2, "the next row stands in"
    assert said in source.known[1]


@pytest.mark.parametrize(
    "condition, data, said",
    [
        ("class", "pictures-without", 'no line has "class", which the pictures\' condition comes from'),
        ("map", "shard.tar", 'shards have no column "map_file_name"; a folder with metadata.jsonl'),
    ],
)
def test_refusals(condition, data, said, script, place, capfd):
    write(place / "pictures-without", [{"file_name": "a.png", "text": "a cat"}])
    (place / "shard.tar").write_bytes(b"")
    assert train(script, data, place / "refused", "--condition", condition) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]


def test_masks_are_random_where_no_file_is_given_and_hide_the_picture(folder, tmp_path):
    base = tiny()
    source = source_of(folder, "mask")
    sd = conditioned(base, "mask", source, True)
    given = masks_given(sd, source, 1)
    of = lambda epoch: given(np.arange(4), Chosen(np.arange(4), np.full(4, epoch), 0))
    first, again, later = of(0), of(0), of(1)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 8, 8, 5) and set(np.unique(first[..., 0])) <= {0.0, 1.0}
    assert (first[..., 0] != later[..., 0]).any() and sd.config.unet.in_channels == 9
    masks = [random_mask(np.random.default_rng(i), 16, 16) for i in range(200)]
    whole = np.mean([mask.all() for mask in masks])
    assert 0.15 < whole < 0.4 and min(mask.mean() for mask in masks) > 0.02
    Image.fromarray(np.uint8(255 * np.eye(16))).save(tmp_path / "mask.png")
    line = {"file_name": str(folder / "0.png"), "text": "", "mask_file_name": "mask.png"}
    write(tmp_path, [line, {"file_name": str(folder / "1.png"), "text": ""}])
    source = source_of(tmp_path, "mask")
    sd = conditioned(base, "mask", source, True)
    one = masks_given(sd, source, 1)(np.array([0]), Chosen(np.array([0]), np.array([5]), 0))[0]
    np.testing.assert_array_equal(one[..., 0], np.eye(8))
    pixels = source.view(0)["pixels"][None] / 127.5 - 1.0
    want = sdjax.encode_mask(sd, pixels.astype(np.float32), np.eye(16)).concat[0]
    np.testing.assert_allclose(one, want, atol=1e-5)


def test_small_pictures_get_noise_of_the_level_that_the_model_is_told():
    given = np.full((512, 2, 2, 3), 0.5, np.float32)
    cond = lowres_cond(X4, {}, batch_of(given), np.zeros(512, bool), jax.random.key(1))
    levels = cond.vector[:, 0]
    assert levels.min() >= 0 and levels.max() <= 350 and len(np.unique(levels)) > 200
    abar = sdjax.sampling.make_schedule(ScheduleConfig(beta_start=1e-4, beta_end=0.02)).alphas_cumprod[
        levels.astype(int)
    ]
    eps = (cond.concat - np.sqrt(abar)[:, None, None, None] * 0.5) / np.sqrt(1 - abar)[:, None, None, None]
    assert abs(eps.std() - 1) < 0.05 and abs(eps.mean()) < 0.05
    plain = lowres_cond(SR, {}, batch_of(given), np.zeros(512, bool), jax.random.key(1))
    assert plain.vector is None and (plain.concat == 0.5).all()
