"""Prompts as the web UI reads them: weights worked out by hand, states by a second implementation."""

import logging
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdjax
from sdjax.conditioning import text as conditioning
from sdjax.diffusion.guidance import with_guidance
from sdjax.model import functions as model
from sdjax.networks.clip.network import TextTower
from sdjax.text import prompt, syntax
from sdjax.types import Cond
from tests.narrow import NARROW, NARROW_V2, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")
BOS, EOS, SIZE = 578, 579, 10  # of the narrow text tower: 12 positions, so chunks of 10 tokens
UP, DOWN = 1.1, 1 / 1.1


class Words:
    """A tokenizer with one id a word; commas are words."""

    def __call__(self, texts, **_):
        return {"input_ids": [[sum(map(ord, word)) % 500 for word in re.findall(r",|[^\s,]+", t)] for t in texts]}


def escape(text: str) -> str:
    """`text` such that `parse` gives it back as it is, with weight 1."""
    text = re.sub(r"([\\()\[\]])", r"\\\1", text)
    return syntax.AND.sub(r"A\\ND", syntax.BREAK.sub(r"B\\REAK", text))


def ids(text):
    return Words()([text])["input_ids"][0]


@pytest.fixture(scope="module")
def sd():
    params = random_params(NARROW.text)
    params["final_norm"]["norm"]["bias"] += 0.3  # a mean to restore
    return sdjax.StableDiffusion(NARROW, {"text": params}, Words())


def read(text, **options):
    (found,) = prompt.read_prompts([text], Words(), NARROW.text, **options)
    return found


#: prompt -> its pieces with their weights, by hand from the syntax's description
TABLE = {
    "a b c": [("a b c", 1)],
    "(a) b": [("a", UP), ("b", 1)],
    "((a)) b": [("a", UP * UP), ("b", 1)],
    "(((a)))": [("a", UP * UP * UP)],
    "[a] b": [("a", DOWN), ("b", 1)],
    "[[a]] b": [("a", DOWN * DOWN), ("b", 1)],
    "(a:1.3) b": [("a", 1.3), ("b", 1)],
    "a (b c:0.5) d": [("a", 1), ("b c", 0.5), ("d", 1)],
    "(a:0) b": [("a", 0), ("b", 1)],
    "(a:-0.5) b": [("a", -0.5), ("b", 1)],
    "(a:+.5) b": [("a", 0.5), ("b", 1)],
    "(a: 1.3) (b:0.5 ) (c :\t2 )": [("a", 1.3), ("", 1), ("b", 0.5), ("", 1), ("c", 2)],
    "(a: 1.2.3 ) b": [("a: 1.2.3", UP), ("b", 1)],
    "(a:2) (b:3)": [("a", 2), ("", 1), ("b", 3)],
    "((a:1.3) b) c": [("a", 1.3 * UP), ("b", UP), ("c", 1)],
    "((a:1.3) b:2) c": [("a", 1.3 * 2), ("b", 2), ("c", 1)],
    "(a (b [c] d:2) e)": [("a", UP), ("b", 2 * UP), ("c", DOWN * 2 * UP), ("d", 2 * UP), ("e", UP)],
    "[(a) b]": [("a", UP * DOWN), ("b", DOWN)],
    "(a [b) c]": [("a", UP), ("b", UP * DOWN), ("c", DOWN)],
    "(a b": [("a b", UP)],
    "a [b (c d": [("a", 1), ("b", DOWN), ("c d", UP * DOWN)],
    "(a)(b)": [("ab", UP)],
    "(a) (b)": [("a", UP), ("", 1), ("b", UP)],
    r"\(a\)": [("(a)", 1)],
    r"(\[a\]:1.3) b": [("[a]", 1.3), ("b", 1)],
    r"(a \) b:1.5)": [("a ) b", 1.5)],
    r"back\slash \\ b": [("backslash \\ b", 1)],
    "a) b": [("a) b", 1)],
    "a :1.3) b": [("a :1.3) b", 1)],
    "[a:1.3]": [("a:1.3", DOWN)],
    "at 12:30": [("at 12:30", 1)],
    "(a:1.2.3) b": [("a:1.2.3", UP), ("b", 1)],
    "(a, b:1.2), c": [("a, b", 1.2), (", c", 1)],
}


@pytest.mark.parametrize("text", TABLE)
def test_weights_by_hand(text, sd):
    pieces, _ = syntax.parse(text)
    assert [(piece.text.strip(), pytest.approx(piece.weight, rel=1e-12)) for piece in pieces] == TABLE[text]

    tokens = [(i, weight) for piece, weight in TABLE[text] for i in ids(piece)]
    row, factors = np.full((1, 12), EOS, np.int32), np.ones((1, 12, 1))
    row[0, 0] = BOS
    for place, (i, weight) in enumerate(tokens, 1):
        row[0, place], factors[0, place] = i, weight
    z = np.asarray(model.text_states(sd.params["text"], row, NARROW.text), np.float64)
    want = z * factors
    want *= z.mean() / want.mean()
    np.testing.assert_allclose(sdjax.encode_prompt(sd, text).context, want, atol=2e-6, rtol=2e-5)


def test_a_prompt_without_special_characters_is_what_it_was(sd):
    texts = ["a b c", "", "a (b:1.3)"]
    states = np.asarray(model.text_states(sd.params["text"], sdjax.tokenize(sd, texts), NARROW.text))
    both, plain = (np.asarray(sdjax.encode_prompt(sd, texts, syntax=s).context) for s in ("a1111", "plain"))
    np.testing.assert_array_equal(plain, states)
    np.testing.assert_array_equal(both[:2], states[:2])
    assert np.abs(both[2] - states[2]).max() > 0.01


def test_without_a_mean_the_weights_alone_count():
    z = np.random.default_rng(0).normal(size=(1, 12, 24)).astype(np.float32)
    z -= z.mean()
    factors = np.ones((1, 12), np.float32)
    factors[0, 3] = 1.5
    np.testing.assert_allclose(conditioning.emphasise(z, factors), z * factors[..., None], rtol=1e-6)


SPECIAL = st.sampled_from([*"ab ,:()[]\\.012-+\n", "BREAK", " AND ", "(x:1.3)", "<w>"])
SPECIAL = st.lists(SPECIAL, max_size=40).map("".join)


@settings(max_examples=1000, deadline=None)
@given(st.one_of(SPECIAL, st.text(max_size=60)))
def test_no_string_is_refused(text):
    for composed in (True, False):
        found = read(text, composed=composed, embeddings={"<w>": range(580, 583)})
        tokens = prompt.stack([found], NARROW.text)
        assert tokens.ids.shape == tokens.weights.shape == (1, *found.shape, 12) and tokens.mix.shape[1] == len(
            found.parts
        )
        assert ((tokens.ids >= 0) & (tokens.ids < 583)).all() and (tokens.ids[..., 0] == BOS).all()
        assert np.isfinite(tokens.weights).all() and np.isfinite(tokens.mix).all()
        assert (tokens.ids == EOS).any(-1).all() and tokens.ids.max() <= 583


@settings(max_examples=200, deadline=None)
@given(st.one_of(SPECIAL, st.text(max_size=60)))
def test_an_escaped_text_is_read_as_it_is(text):
    pieces, notes = syntax.parse(escape(text))
    assert pieces == ([syntax.Piece(text, 1.0)] if text else []) and not notes
    assert len(syntax.compose(escape(text))) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh,"), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_weight_1_is_no_weight(found, first, last):
    inside = " ".join(found[first:last])
    marked = " ".join([*found[:first], f"({inside}:1.0)", *found[max(first, last) :]])
    assert read(marked).parts == read(" ".join([*found[:first], inside, *found[max(first, last) :]])).parts


def test_huge_weights_are_cut(sd):
    for text in (
        "(" * 9000 + "a",
        "((a:999999999999):99999999999999999999999999999999999999)",
        "(a:" + "9" * 400 + ")",
        "(((a:0) b:" + "9" * 400 + "):" + "9" * 400 + ")",
    ):
        assert "is cut to it" in " ".join(read(text).notes)
        assert np.isfinite(sdjax.encode_prompt(sd, text).context).all()


# ---- chunks

#: text -> chunks of 10 tokens, by hand; commas count back 20 * 10 / 75 = 2 tokens
CHUNKS = {
    "": [""],
    "a b c d e f g h i j": ["a b c d e f g h i j"],
    "a b c d e f g h i j k": ["a b c d e f g h i j", "k"],
    "a b c d e f g h , j k": ["a b c d e f g h ,", "j k"],
    "a b c d e f g , i j k": ["a b c d e f g , i j", "k"],
    "a b c d e f g h i , k": ["a b c d e f g h i ,", "k"],
    "a b c d e f g h i j , k": ["a b c d e f g h i j", ", k"],
    "a b c d e f g h , j , l": ["a b c d e f g h , j", ", l"],
    "a BREAK b": ["a", "b"],
    "a BREAK BREAK b": ["a", "", "b"],
    "BREAK a": ["", "a"],
    "a BREAK": ["a"],
    "(a BREAK b:1.5)": ["a", "b"],
    "BREAKFAST a": ["BREAKFAST a"],
    "a b c d e f g h i <w> j": ["a b c d e f g h i", "<w> j"],
    "a <w> b <w> c <w> d": ["a <w> b <w> c", "<w> d"],
}


@pytest.mark.parametrize("text", CHUNKS)
def test_chunks_by_hand(text):
    vector = [580, 581, 582]
    ((_, found),) = read(text, embeddings={"<w>": vector}).parts
    want = [[i for word in chunk.split() for i in (vector if word == "<w>" else ids(word))] for chunk in CHUNKS[text]]
    assert [[i for i, _ in chunk] for chunk in found] == want


def test_chunks_do_not_see_each_other(sd):
    first, second = "a b c d e f (g:1.5) h i j", "k l [m]"
    whole = sdjax.encode_prompt(sd, f"{first} {second}").context
    assert whole.shape == (1, 24, 24)
    parts = [sdjax.encode_prompt(sd, part).context for part in (first, second)]
    np.testing.assert_allclose(whole, np.concatenate(parts, axis=1), atol=1e-5)
    _, short = sdjax.encode_prompt(sd, [f"{first} {second}", "a"]).context
    np.testing.assert_allclose(short, sdjax.encode_prompt(sd, ["a", ""]).context.reshape(24, 24), atol=1e-5)


def test_the_bundled_tower_takes_thirty_tokens_a_chunk():
    found = sdjax.load("emoji")
    shapes = [one.shape for one in conditioning.read_prompts(found, ["red apple " * 15, "red apple " * 15 + "cat"])]
    assert shapes == [(1, 1), (1, 2)]


def test_what_was_not_understood_is_said_once(sd, caplog):
    for text, said in {
        "a b": "",
        "smile :)": ") closes nothing",
        "a] b": "] closes nothing",
        "(a:1.2.3)": "1.2.3 is not a number",
        "(a": "( is not closed",
        "a [b": "[ is not closed",
        "a [b|c] d": "alternation",
        "a [b:c:0.5]": "prompt editing",
        "[c:.5] a": "prompt editing",
        "<lora:shiny:0.8> a": "LoRAs are loaded by the prompts of tasks alone",
        "a b c d e f g h i j k l": "",
        r"a \[b|c\]": "",
    }.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sdjax"):
            sdjax.encode_prompt(sd, [text, text])
        assert [record.name for record in caplog.records] == ["sdjax"] * bool(said) and said in caplog.text
    with caplog.at_level(logging.WARNING, logger="sdjax"):
        caplog.clear()
        sdjax.encode_prompt(sd, ["a (b", "a " * 14], syntax="plain")
        assert "prompt 'a a a" in caplog.text and "cut to its first 10 tokens of 14" in caplog.text
        assert len(caplog.records) == 1


def test_clip_skip(sd):
    params, row = sd.params["text"], sdjax.tokenize(sd, "a b")
    tower = TextTower(replace(NARROW.text, layers=1))
    fewer = {name: value for name, value in params.items() if name != "layer_1"}
    np.testing.assert_allclose(
        sdjax.encode_prompt(sd, "a b", clip_skip=2).context, tower.apply({"params": fewer}, row), atol=1e-6
    )
    np.testing.assert_array_equal(
        sdjax.encode_prompt(sd, "a b", clip_skip=1).context, sdjax.encode_prompt(sd, "a b").context
    )


def test_padding_of_sd_2():
    text = replace(NARROW_V2.text, layers=1)
    two = sdjax.StableDiffusion(replace(NARROW_V2, text=text), {"text": random_params(text)}, Words())
    tokens = prompt.stack(conditioning.read_prompts(two, ["a b", ""]), text)
    np.testing.assert_array_equal(tokens.ids[:, 0, 0], sdjax.tokenize(two, ["a b", ""]))
    assert tokens.ids[0, 0, 0, 4:].tolist() == [0] * 8


# ---- AND


def test_composed_prompts():
    assert syntax.compose("a AND b") == [("a", 1.0), ("b", 1.0)]
    assert syntax.compose(" a cat :1.2 AND a (dog:1.3) :0.7 ") == [("a cat", 1.2), ("a (dog:1.3)", 0.7)]
    assert syntax.compose("a :-.5 AND b: 2. AND c") == [("a", -0.5), ("b", 2.0), ("c", 1.0)]
    assert syntax.compose("at 12:30") == [("at 12:30", 1.0)] and len(syntax.compose("SAND and BRANDY")) == 1
    assert syntax.compose("a : b AND c") == [("a : b", 1.0), ("c", 1.0)]


def test_composed_contexts(sd):
    cond = sdjax.encode_prompt(sd, ["a AND (b:1.5) c:0.5", "d"])
    assert cond.context.shape == (2, 2, 12, 24)
    np.testing.assert_array_equal(cond.mix, [[1.0, 0.5], [1.0, 0.0]])
    for got, text in ((cond.context[0, 0], "a"), (cond.context[0, 1], "(b:1.5) c"), (cond.context[1, 0], "d")):
        np.testing.assert_allclose(got, sdjax.encode_prompt(sd, text).context[0], atol=1e-5)
    (literal,) = conditioning.read_prompts(sd, "a AND b", composed=False)
    assert literal.shape == (1, 1) and [i for i, _ in literal.parts[0][1][0]] == ids("a AND b")


def test_guidance_adds_the_composed_directions():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, t, mix = draw(2, 4, 4, 1), jnp.ones(2), jnp.asarray([[1.0, 0.5, -0.3], [2.0, 0.0, 0.0]])
    predict = lambda x, t, cond: x * cond.context.mean((1, 2))[:, None, None, None] + t[:, None, None, None]
    uncond, cond = Cond(draw(2, 5, 3)), Cond(draw(2, 3, 5, 3), mix)
    out = lambda context: predict(x, t, Cond(context))
    u = out(uncond.context)
    want = u + 7.5 * sum(mix[:, i, None, None, None] * (out(cond.context[:, i]) - u) for i in range(3))
    np.testing.assert_allclose(with_guidance(predict, uncond, cond, 7.5)(x, t), want, rtol=1e-4, atol=1e-5)


# ---- embeddings


def test_words_of_embeddings():
    vectors = {"<cat>": range(580, 582), "easyneg": range(582, 583)}
    tokens = lambda text, **options: [i for i, _ in read(text, embeddings=vectors, **options).parts[0][1][0]]
    assert tokens("a <cat> b") == [*ids("a"), 580, 581, *ids("b")]
    assert tokens("a<CAT>,b") == [*ids("a"), 580, 581, *ids(",b")]
    assert tokens("EasyNeg, a") == [582, *ids(", a")] and tokens("uneasyneg a") == ids("uneasyneg a")
    assert tokens("(<cat>:1.2)", syntax="plain") == [*ids("("), 580, 581, *ids(":1.2)")]
    ((_, (chunk,)),) = read("(a <cat>:1.2)", embeddings=vectors).parts
    assert [weight for _, weight in chunk] == [1.2] * 3


def test_vectors_stand_in_for_tokens(sd):
    """The vectors of known tokens under a new name give those tokens' states."""
    table = np.asarray(sd.params["text"]["token_embedding"]["embedding"])
    other = replace(sd, embeddings={"<x>": np.zeros((1, 24), np.float32), "<cat>": table[ids("b c")]})
    np.testing.assert_array_equal(
        sdjax.encode_prompt(other, "(a <cat> d:1.2) e").context, sdjax.encode_prompt(sd, "(a b c d:1.2) e").context
    )
    assert np.abs(sdjax.encode_prompt(other, "a <x> c").context - sdjax.encode_prompt(sd, "a b c").context).max() > 0.01


def test_refusals(sd):
    for call, match in [
        (lambda: sdjax.encode_prompt(sd, "a", syntax="comfy"), "syntax 'comfy': one of a1111, plain"),
        (lambda: sdjax.encode_prompt(sd, "a", clip_skip=0), "clip_skip 0: a whole number from 1, the last layer, to 2"),
        (lambda: sdjax.encode_prompt(sd, "a", clip_skip=3), "clip_skip 3"),
        (lambda: sdjax.encode_prompt(sd, "a", clip_skip=1.0), r"clip_skip 1\.0"),
        (lambda: sdjax.encode_prompt(sd, "a", crop=(5, 5)), "crop .5, 5.: .* takes none, SDXL does"),
        (lambda: sdjax.encode_prompt(sd, "a", crop="x"), "crop 'x': .* takes none"),
        (lambda: sdjax.encode_prompt(sd, ["a", 2]), r"prompts\[1\] is int"),
        (lambda: sdjax.encode_prompt("emoji", "a"), "sd is str: a model, as sdjax.load gives it, expected"),
        (lambda: sdjax.encode_prompt(replace(sd, tokenizer=None), "a"), "without a tokenizer"),
    ]:
        with pytest.raises(sdjax.SdjaxError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert sdjax.encode_prompt(sd, []).context.shape == (0, 12, 24)


def test_weights_and_chunk_contents_do_not_recompile(sd):
    sdjax.encode_prompt(sd, ["a", "b"])
    before = model.text_states._cache_size(), conditioning.emphasise._cache_size()
    sdjax.encode_prompt(sd, ["(a:1.3) b", "[c] d e"])
    assert (model.text_states._cache_size(), conditioning.emphasise._cache_size()) == before
    assert jax.tree.structure(sdjax.encode_prompt(sd, "a")) == jax.tree.structure(Cond(0))
