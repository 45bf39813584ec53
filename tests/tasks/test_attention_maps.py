"""Cross-attention maps against a second computation, from the UNet's own q and k."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.diffusion.schedule import make_schedule, t_to_sigma
from sdjax.networks.unet.network import UNet
from sdjax.nn import transformer
from sdjax.text.bpe import train_bpe
from tests.narrow import NARROW, random_model_params
from tests.text.test_tokenizer import captions

pytestmark = pytest.mark.usefixtures("quick_compile")
PROMPT = "a red apple on the left"


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    tokenizer, params = train_bpe(captions(), 580, tmp_path_factory.mktemp("tokenizer")), random_model_params(NARROW)
    sharpen = lambda path, leaf: leaf * 8 if path[-2].key in ("q", "k") else leaf  # else attention is all but even
    return sdjax.StableDiffusion(NARROW, jax.tree_util.tree_map_with_path(sharpen, params), tokenizer)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, 8, 4, 4)).astype(np.float32)


def enlarge(a, axis, size):
    """Linear interpolation between the centres of pixels, the border repeated."""
    places = np.clip((np.arange(size) + 0.5) * a.shape[axis] / size - 0.5, 0, a.shape[axis] - 1)
    low = np.minimum(places.astype(int), max(a.shape[axis] - 2, 0))
    high = np.minimum(low + 1, a.shape[axis] - 1)
    share = (places - low).reshape(-1, *[1] * (a.ndim - 1 - axis))
    return a.take(low, axis) * (1 - share) + a.take(high, axis) * share


def by_hand(sd, x, t, context):
    """Softmax of the captured q and k of all cross-attentions, in float64."""
    taken = lambda module, method: method == "__call__" and module.name in ("q", "k") and "cross" in module.path
    apply = partial(UNet(sd.config.unet).apply, capture_intermediates=taken, mutable=["intermediates"])
    t = np.broadcast_to(np.float32(t), len(x))
    _, found = jax.jit(apply)({"params": sd.params["unet"]}, x, t, context)
    maps = []
    for name, one in found["intermediates"].items():
        q, k = (np.asarray(one["block"]["cross"][part]["__call__"][0], np.float64) for part in "qk")
        level = len(sd.config.unet.channels) - 1 if name.startswith("mid") else int(name.split("_")[1])
        heads, factor = sd.config.unet.heads[level], 2**level
        total = 0
        for i in range(heads):
            part = slice(i * q.shape[2] // heads, (i + 1) * q.shape[2] // heads)
            logits = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(q.shape[2] // heads)
            share = np.exp(logits - logits.max(-1, keepdims=True))
            total = total + share / share.sum(-1, keepdims=True) / heads
        grid = total.reshape(len(x), x.shape[1] // factor, x.shape[2] // factor, -1)
        maps.append(enlarge(enlarge(grid, 1, x.shape[1]), 2, x.shape[2]))
    return np.mean(maps, axis=0).transpose(0, 3, 1, 2)


def test_maps_are_the_attention(sd, x):
    maps, cond = sdjax.attention_maps(sd, PROMPT, x, 500), sdjax.encode_prompt(sd, [PROMPT] * 2)
    assert maps.shape == (2, 12, 8, 4) and maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(maps, by_hand(sd, x, 500, cond.context), atol=1e-5)
    assert np.ptp(maps, axis=(2, 3)).max() > 0.05, "too even to tell anything"
    each = sdjax.attention_maps(sd, [PROMPT, "a sailboat"], x, [500, 20])
    want = by_hand(sd, x[1:], 20, sdjax.encode_prompt(sd, "a sailboat").context)
    np.testing.assert_allclose(each[1:], want, atol=1e-5)


def test_a_walk_is_averaged(sd, x):
    sigma = t_to_sigma(make_schedule(sd.config.schedule), np.array([600, 30.5])).astype(np.float32)
    walk = SimpleNamespace(sigma=sigma, x=np.stack([x, x / 2]))
    both = [sdjax.attention_maps(sd, PROMPT, *at) for at in ((x, 600), (x / 2, 30.5))]
    np.testing.assert_allclose(sdjax.attention_maps(sd, PROMPT, walk), np.mean(both, axis=0), atol=1e-5)


def test_long_prompts_have_more_maps(sd, x):
    prompt = PROMPT + " BREAK a sailboat"
    assert sdjax.attention_maps(sd, prompt, x, 500).shape == (2, 24, 8, 4)
    (words,) = sdjax.prompt_words(sd, prompt)
    assert len(words) == 24 and words[0] == words[12] == "<|startoftext|>" and words[13:15] == ["a</w>", "sailboat</w>"]


def test_nothing_is_computed_when_not_asked_for(sd, x, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(transformer, "attention_weights", fail)
    module, inputs = UNet(sd.config.unet), (x, np.zeros(2), np.zeros((2, 12, 24), np.float32))
    assert list(jax.eval_shape(module.init, jax.random.key(0), *inputs)) == ["params"]
    jax.eval_shape(module.apply, {"params": sd.params["unet"]}, *inputs)
    with pytest.raises(AssertionError):
        jax.eval_shape(lambda *inputs: module.apply({"params": sd.params["unet"]}, *inputs, mutable=["maps"]), *inputs)


def test_pictures(sd):
    words = ["<|startoftext|>", "red</w>", "ap", "ple</w>", "<|endoftext|>"]
    maps = np.random.default_rng(0).uniform(size=(5, 4, 4))
    sheet = sdjax.attention_pictures(Image.new("RGB", (16, 8), "red"), maps, words, side=32)
    assert sheet.size == (2 * 34 + 2, 2 * 34 + 2)  # the image, red, apple: 2 columns of 32 x (16 + 16)
    flat = np.asarray(sdjax.attention_pictures(Image.new("RGB", (16, 16)), np.ones((5, 4, 4)), words))
    assert np.isfinite(flat).all()


def test_padding_that_is_a_word_is_not_the_next_chunks(sd, monkeypatch):
    drawn = []
    cell = Image.new("RGB", (9, 9))
    monkeypatch.setattr("sdjax.tasks.attention_maps.captioned", lambda image, text: drawn.append((text, image)) or cell)
    monkeypatch.setattr("sdjax.tasks.attention_maps.overlay", lambda image, total: total)
    chunk = lambda word: ["<|startoftext|>", f"{word}</w>", "<|endoftext|>", "!", "!"]
    sdjax.attention_pictures(Image.new("RGB", (16, 8)), np.ones((10, 4, 4)), [*chunk("cat"), *chunk("dog")])
    assert [text for text, _ in drawn[1:]] == ["cat", "dog"] and all((total == 1).all() for _, total in drawn[1:])


def test_words_of_embeddings(sd):
    assert sdjax.prompt_words(sd, []) == []
    sd = replace(sd, embeddings={"<cat>": np.zeros((2, 24), np.float32)})
    assert sdjax.prompt_words(sd, "a <cat>")[0][:4] == ["<|startoftext|>", "a</w>", "<cat></w>", "<cat></w>"]


def test_refusals(sd, x):
    for call, match in [
        (lambda: sdjax.attention_maps(sd, PROMPT, x), "t is None"),
        (lambda: sdjax.attention_maps(sd, "a AND b", x, 1), "composes several with AND"),
        (lambda: sdjax.prompt_words(sd, "a AND b"), "compose several with AND"),
        (lambda: sdjax.attention_maps(sd, ["a"] * 3, x, 1), "3 prompts, t of shape .*: one, or 2"),
        (lambda: sdjax.attention_maps(sd, "a", x, [1, 2, 3]), r"t of shape \[3\]"),
        (lambda: sdjax.attention_maps(sd, "a", x[..., :3], 1), "x has shape"),
        (lambda: sdjax.attention_maps(sd, "a", SimpleNamespace(x=[x], sigma=[1.0]), 1), "t: x is a walk"),
        (lambda: sdjax.attention_maps(sd, [], x, 1), "0 prompts"),
        (lambda: sdjax.attention_pictures(Image.new("RGB", (8, 8)), x, ["a"]), "maps of shape"),
    ]:
        with pytest.raises(sdjax.SdjaxError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
