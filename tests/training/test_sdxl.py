"""Training SDXL: what a batch holds, what is dropped, and runs whose export draws. Everything on a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from PIL import Image

import sdjax
from sdjax.data.order import Chosen
from sdjax.data.source import open_data
from sdjax.devices.layouts import FsdpLayout, PmapLayout
from sdjax.errors import SdjaxError
from sdjax.families.sd2 import SD21_UNCLIP_L
from sdjax.families.sdxl import SDXL
from sdjax.text.bpe import train_bpe
from sdjax.training.cache import cached_states, split_states
from sdjax.training.captions import Table, batch_shapes
from sdjax.training.conditions import text_null
from sdjax.training.diffusion import Null, diffusion_loss, dropped, on_text, text_cond, zero_null
from sdjax.training.options import check_channels
from sdjax.training.sizes import bucket_multiple, view_sizes
from sdjax.training.state import make_state, make_train_step
from sdjax.types import Batch
from tests.kinds import XL, model
from tests.scripts import ROOT
from tests.text.test_tokenizer import captions

pytestmark = pytest.mark.usefixtures("quick_compile")

POOLED = XL.text_2.projection
SIZES = [(440, 240), (400, 448), (60, 40), (40, 24)]  # of the pictures: (height, width)
#: By hand, centred. 440 x 240 becomes 22 x 12 and loses 1 row above; 400 x 448 becomes 16 x 17.9 and loses 0.96 columns
#: at the left; 60 x 40 becomes 20 x 13.3 and loses 0.67; 40 x 24 becomes 20 x 12.
TOLD = [(440, 240, 1, 0, 20, 12), (400, 448, 0, 1, 16, 16), (60, 40, 0, 1, 20, 12), (40, 24, 0, 0, 20, 12)]


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    tokenizer = train_bpe(captions(), XL.text.vocab_size, tmp_path_factory.mktemp("tokenizer"))
    return replace(model(XL), tokenizer=tokenizer)


def pictures(folder, sizes):
    """Writes pictures of these sizes, and their captions."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    lines = [{"file_name": f"{i}.png", "text": f"a {'red' if i % 2 else 'blue'} apple"} for i in range(len(sizes))]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def chosen(rows, epochs=None, group=0):
    return Chosen(np.array(rows), np.array([0] * len(rows) if epochs is None else epochs), group)


# ---- sizes


def test_a_batch_holds_the_sizes_of_its_pictures(sd, tmp_path):
    source = open_data(pictures(tmp_path / "data", SIZES), 16, buckets=bucket_multiple(XL))
    assert source.shapes == [(16, 16), (20, 12)] and [rows.tolist() for rows in source.groups] == [[1], [0, 2, 3]]
    table, vectors = Table(sd, source, tmp_path / "cache"), {}
    for group, rows in enumerate(source.groups):
        batch = table.batch(chosen(rows, group=group), rows.astype(np.uint32))
        assert batch.vector.dtype == np.float32 and batch.context.shape[1:] == (12, 40)
        vectors |= dict(zip(rows.tolist(), batch.vector, strict=True))
    for row, told in enumerate(TOLD):
        numbers = vectors[row][POOLED:].reshape(6, 256)
        np.testing.assert_array_equal(numbers[:, 0], np.cos(np.float64(told)).astype(np.float32))
        np.testing.assert_array_equal(numbers[:, 128], np.sin(np.float64(told)).astype(np.float32))
    cond = sdjax.encode_prompt(sd, ["a blue apple", "a red apple"], 1, "plain", None, (440, 240), (1, 0), (20, 12))
    np.testing.assert_array_equal(vectors[0][POOLED:], cond.vector[0, POOLED:])
    np.testing.assert_allclose([vectors[0][:POOLED], vectors[1][:POOLED]], cond.vector[:, :POOLED], atol=2e-3)


def test_a_stand_in_tells_its_own_size(sd, tmp_path):
    data = pictures(tmp_path / "data", [(16, 20), (18, 16), (16, 16)])
    (data / "0.png").write_bytes(b"")
    source = open_data(data, 16, max_bad=0.5)
    vector = Table(sd, source, tmp_path / "cache").batch(chosen([0, 2]), np.arange(2, dtype=np.uint32)).vector
    heights = vector[:, POOLED]
    np.testing.assert_array_equal(heights, np.cos(np.float64([18, 16])).astype(np.float32))


def test_the_crop_is_where_the_pixels_say(tmp_path):
    """A picture whose columns are numbered, mirrored and cropped at random: left is counted in what the model sees."""
    columns = np.arange(40, dtype=np.uint8)[None].repeat(16, 0)
    (tmp_path / "data").mkdir()
    Image.fromarray(columns).save(tmp_path / "data" / "0.png")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": ""}\n')
    source, seen = open_data(tmp_path / "data", 16, crop="random", flip=True), set()
    for epoch in range(20):
        place, mirrored = source.draw(0, epoch)
        told = view_sizes((16, 40), (16, 16), place, mirrored)
        first = source.view(0, epoch)["pixels"][0, 0, 0]
        assert told.tolist() == [16, 40, 0, 39 - first if mirrored else first, 16, 16]
        seen.add((mirrored, told[3]))
    assert len(seen) > 10 and {mirrored for mirrored, _ in seen} == {False, True}
    assert view_sizes((400, 480), (16, 16), (0, 0), False)[3] == 0
    assert view_sizes((400, 480), (16, 16), (0, 0), True)[3] == 3  # 80 pixels, 3.2 after resizing


def test_buckets_are_sdxl_s():
    assert bucket_multiple(SDXL) == 64 and bucket_multiple(replace(SDXL, size=1056)) == 32


# ---- texts


def test_cached_texts_are_what_both_towers_say(sd, tmp_path):
    texts = ["a red apple", "", "x" * 40, "a (blue:1.5) apple", "a red apple"]
    rows, place = cached_states(sd, texts, tmp_path)
    context, pooled = split_states(sd.config, rows[place])
    assert context.dtype == pooled.dtype == np.float16 and len(rows) == 4
    want = sdjax.encode_prompt(sd, texts, syntax="plain")
    for found, exact in ((context, want.context), (pooled, want.vector[:, :POOLED])):
        assert np.abs(found - exact).max() <= 2**-11 * np.abs(exact).max()
    cached_states(replace(sd, config=replace(XL, text_2=replace(XL.text_2, pad_token=1))), texts, tmp_path)
    tower = jax.tree.map(lambda leaf: 2 * leaf, sd.params["text_2"])
    cached_states(replace(sd, params=sd.params | {"text_2": tower}), texts, tmp_path)
    assert len(list(tmp_path.glob("states-*"))) == 3, "a cache serves another second tower"


def test_states_that_overflow_are_refused(sd, tmp_path, monkeypatch):
    from sdjax.training import cache

    both = cache.states_and_pooled
    monkeypatch.setattr(cache, "states_and_pooled", lambda *args: [1e6 * part for part in both(*args)])
    with pytest.raises(SdjaxError, match="model: its text states of 'a red apple' are not finite in float16"):
        cached_states(sd, ["a red apple"], tmp_path)


def random_batch(count):
    rng = np.random.default_rng(0)
    context = rng.normal(size=(count, 12, 40)).astype(np.float16)
    vector = rng.normal(size=(count, XL.unet.vector)).astype(np.float32)
    return Batch(np.zeros((count, 4, 4, 8), np.float16), context, np.arange(count, dtype=np.uint32), None, vector)


class Seen(Exception):
    pass


def test_each_embedding_is_dropped_by_itself():
    batch, key = random_batch(4000), jax.random.key(3)

    def spy(params, batch, drop, key):
        raise Seen(drop)

    with pytest.raises(Seen) as caught:
        diffusion_loss(XL, spy, caption_dropout=0.2)({}, batch, key)
    drop = np.asarray(caught.value.args[0])
    np.testing.assert_array_equal(drop[:, 0], dropped(batch.index, key, 0.2))  # as of a model of one tower
    assert (abs(drop.mean(0) - 0.2) < 0.02).all() and abs(drop.all(1).mean() - 0.04) < 0.01
    null = Null(*(np.full_like(part, value) for part, value in zip(zero_null(XL), (5, 6, 7), strict=True)))
    cond = text_cond(batch, null, drop)
    assert cond.context.dtype == cond.vector.dtype == np.float32
    parts = [
        (cond.context[..., :24], batch.context[..., :24], 5, drop[:, 0]),
        (cond.context[..., 24:], batch.context[..., 24:], 6, drop[:, 1]),
        (cond.vector[:, :POOLED], batch.vector[:, :POOLED], 7, drop[:, 1]),
        (cond.vector[:, POOLED:], batch.vector[:, POOLED:], None, np.zeros(4000, bool)),
    ]
    for found, given, value, gone in parts:
        np.testing.assert_array_equal(found[~gone], given[~gone])
        assert (np.asarray(found[gone]) == value).all()


def test_dropped_captions_are_zeros_or_the_empty_prompt(sd):
    assert not any(part.any() for part in text_null(sd))
    encoded = text_null(replace(sd, config=replace(XL, zero_negative=False)))
    want = sdjax.encode_prompt(sd, [""])
    np.testing.assert_array_equal(np.concatenate(encoded[:2], axis=-1), want.context[0])
    np.testing.assert_array_equal(encoded.pooled, want.vector[0, :POOLED])


# ---- what is refused


@pytest.mark.parametrize(
    "config, condition, said",
    [
        (SD21_UNCLIP_L, "text", "its UNet takes a vector of 1536 numbers that training does not give"),
        (replace(SDXL, unet=replace(SDXL.unet, vector=2560)), "text", "only SDXL's base is trained"),
        (replace(SDXL, unet=replace(SDXL.unet, in_channels=9)), "text", "its UNet has 9 input channels"),
        (SDXL, "class", "condition class: model X is told the sizes of pictures"),
    ],
)
def test_refusals(config, condition, said):
    with pytest.raises(SdjaxError, match=said):
        check_channels("X", config, condition)
    check_channels("SDXL", SDXL)


# ---- runs


@pytest.fixture(scope="module")
def runs(sd, tmp_path_factory):
    """A folder with `model` and `pictures` of one shape, which is no square."""
    folder = tmp_path_factory.mktemp("runs")
    sdjax.save(sd, folder / "model")
    pictures(folder / "pictures", [(20, 12), (40, 24)] * 4)
    return folder


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_run_goes_on_to_the_bit_and_its_export_draws(script, runs, monkeypatch):
    def train(out, *more):
        monkeypatch.chdir(runs)
        common = "--model", runs / "model", "--data", runs / "pictures", "--out", runs / out, "--batch-size", 4
        common += "--buckets", "--warmup", 0, "--optimizer", "lion", "--learning-rate", 1e-3, "--steps", 3
        common += "--checkpoint-every", 2, "--min-snr-gamma", 5, "--noise-offset", 0.05, "--flip", "--views", 2
        assert script("train/train_diffusion.py", *common, *more) == 0
        return sdjax.load(runs / out / "export")

    whole = train("whole", "--sample-every", 3, "--sample-prompts", 2)
    shutil.copytree(runs / "whole", runs / "parts")
    for name in ("checkpoints/3", "export"):  # as if killed after step 2
        shutil.rmtree(runs / "parts" / name)
    parts = train("parts", "--sample-every", 0)
    for a, b in zip(leaves(whole.params), leaves(parts.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (runs / "whole" / "samples" / "3.png").is_file()
    assert (runs / "whole" / "export" / "text_encoder_2").is_dir()
    assert (runs / "whole" / "export" / "tokenizer_2").is_dir()
    before = sdjax.load(runs / "model")
    assert whole.config == before.config and whole.config.zero_negative
    for part in ("text", "text_2", "vae"):
        assert all(map(np.array_equal, leaves(whole.params[part]), leaves(before.params[part])))
    moved = lambda name: np.abs(whole.params["unet"][name]["kernel"] - before.params["unet"][name]["kernel"]).max()
    assert min(moved("label_in"), moved("conv_in")) > 1e-4
    (picture,) = sdjax.txt2img(whole, "a red apple", steps=2)
    assert picture.size == (16, 16)
    shapes = batch_shapes(XL, 4)
    made = Table(before, open_data(runs / "pictures", 16), runs / "cache").batch(chosen([0, 1, 2, 3]), np.arange(4))
    assert [leaf.shape for leaf in jax.tree.leaves(made)] == [leaf.shape for leaf in jax.tree.leaves(shapes)]


def gradients(out: str):
    """The gradient and the loss of one step, on one of four devices, and on all in both layouts."""
    jax.config.update("jax_disable_most_optimizations", True)
    loss = diffusion_loss(XL, on_text(zero_null(XL)), caption_dropout=0.5)
    params, batch, found = model(XL).params["unet"], random_batch(8), {}
    layouts = {"one": FsdpLayout(1, jax.devices()[:1]), "fsdp": FsdpLayout(), "pmap": PmapLayout()}
    for name, layout in layouts.items():
        optimizer = optax.sgd(0.1, momentum=0.0)  # its trace is the gradient
        train_step = make_train_step(
            lambda params, *rest, layout=layout: loss(layout.for_loss(params), *rest), optimizer, 0.9, layout.average
        )
        state = layout.create(lambda params: make_state(params, optimizer), params, np.uint32(0))  # noqa: B023
        step = layout.step(lambda state, batch, seed: train_step(state, batch, jax.random.key(seed)), state)  # noqa: B023
        if name == "fsdp":
            kernel = state.params["label_in"]["kernel"]
            assert 4 * kernel.addressable_data(0).size == kernel.size
        state, metrics = step(state, layout.put(batch), np.uint32(5))
        gradient = leaves(layout.fetch(state.opt_state))
        found[name] = np.concatenate([np.ravel(leaf) for leaf in gradient])
        found[f"{name} loss"] = layout.fetch(metrics)["loss"]
    np.savez(out, **found)


def test_fsdp_and_pmap_have_one_device_s_gradient(tmp_path):
    script = "import sys; from tests.training.test_sdxl import gradients; gradients(sys.argv[1])"
    flags = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"}
    where = os.environ | flags | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script, tmp_path / "found.npz"], cwd=ROOT, env=where, check=True)
    found = np.load(tmp_path / "found.npz")
    one = found["one"]
    assert np.abs(one).max() > 1e-3
    for name in ("fsdp", "pmap"):
        assert np.abs(found[name] - one).max() < 1e-5 * np.abs(one).max()
        np.testing.assert_allclose(found[f"{name} loss"], found["one loss"], rtol=1e-5)
