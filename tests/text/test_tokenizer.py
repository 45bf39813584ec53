"""The tokenizer: CLIP's format, no unknown text, ids as the config says."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15, SD21
from sdjax.networks.clip.config import TextConfig
from sdjax.text.bpe import train_bpe
from sdjax.text.prompt import read_prompts
from sdjax.text.tokenizer import (
    BOS,
    EOS,
    byte_characters,
    clip_tokenizer,
    load_tokenizer,
    special_ids,
    tokenize,
    write_tokenizer,
)

SIZE = 580
CONFIG = TextConfig(vocab_size=SIZE, length=16, bos_token=SIZE - 2, eos_token=SIZE - 1, pad_token=SIZE - 1)
STRANGE = [
    "Ünïcödé naïve café",
    "红苹果 と りんご",
    "😀🍎 on a 👩‍🚀",
    "it's 12\t\n  o'clock!!",
    "a\u0301 e\u0301",
    "zzzqqq \x00 \x7f",
    "\ud7ff\uffff",
    "",
]


def captions():
    rng = random.Random(0)
    styles, things = ["3d render", "flat emoji", "noto emoji"], ["red apple", "grinning face", "sailboat", "hedgehog"]
    places = ["on the left", "small", "on a light blue background", "on a yellow background", "isn't here"]
    return [f"A {rng.choice(styles)} of a {rng.choice(things)} {rng.choice(places)}" for _ in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_bpe(iter(captions()), SIZE, out)
    return out


def test_vocabulary_has_clips_order_and_the_size_asked_for(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    characters = byte_characters()
    assert list(vocabulary.values()) == list(range(SIZE)) and len(set(characters)) == 256
    tokens = list(vocabulary)
    assert tokens[:512] == characters + [c + "</w>" for c in characters] and tokens[-2:] == [BOS, EOS]
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    assert lines[0] == "#version: 0.2"
    assert list(dict.fromkeys(line.replace(" ", "") for line in lines[1:])) == tokens[512:-2]


def test_training_is_deterministic(folder, tmp_path):
    train_bpe(captions(), SIZE, tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_any_text_comes_back_whole(folder):
    """Nothing is unknown: the tokens of strange text spell its UTF-8 bytes (after CLIP's normalisation)."""
    import unicodedata

    tokenizer, to_byte = load_tokenizer(folder), None
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [b for b in range(256) if b not in order]
    to_byte = dict(zip(byte_characters(), order, strict=True))
    for text in STRANGE + captions()[:5]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert all(0 <= i < SIZE - 2 for i in ids)
        spelled = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("</w>", "")
        got = bytes(to_byte[c] for c in spelled).decode("utf-8")
        want = unicodedata.normalize("NFC", text).lower()
        assert "".join(got.split()) == "".join(want.split())


def test_words_of_the_captions_became_single_tokens(folder):
    tokens = load_tokenizer(folder).tokenize("a red APPLE")
    assert tokens == ["a</w>", "red</w>", "apple</w>"]


def test_tokenize_pads_cuts_and_brackets(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenize(tokenizer, CONFIG, ["", "a red apple", "apple " * 40])
    assert ids.shape == (3, 16) and ids.dtype == np.int32
    assert (ids[:, 0] == CONFIG.bos_token).all() and (ids[0, 1:] == CONFIG.eos_token).all()
    assert ids[1, 4] == CONFIG.eos_token and CONFIG.eos_token not in ids[1, :4]
    assert ids[2, -1] == CONFIG.eos_token and CONFIG.eos_token not in ids[2, :-1]
    whole = tokenizer(["", "a red apple"], padding="max_length", max_length=16, truncation=True)["input_ids"]
    assert ids[:2].tolist() == whole
    assert (tokenize(tokenizer, CONFIG, "a red apple") == ids[1:2]).all()
    assert tokenize(tokenizer, CONFIG, []).shape == (0, 16)


def test_a_written_tokenizer_is_the_same(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    write_tokenizer(tokenizer, CONFIG, tmp_path)
    assert (tmp_path / "vocab.json").read_bytes() == (folder / "vocab.json").read_bytes()
    assert (tmp_path / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
    again = load_tokenizer(tmp_path)
    assert (tokenize(again, CONFIG, STRANGE) == tokenize(tokenizer, CONFIG, STRANGE)).all()


def test_added_words_are_kept(folder, tmp_path):
    """Those of diffusers' textual inversion."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1"])
    write_tokenizer(tokenizer, CONFIG, tmp_path)
    again, wide = load_tokenizer(tmp_path), replace(CONFIG, vocab_size=SIZE + 2)
    ids = tokenize(again, wide, prompt := "a <cat-toy> <cat-toy>_1")
    assert ids[0, 2:4].tolist() == [SIZE, SIZE + 1] and (ids == tokenize(tokenizer, wide, prompt)).all()


@pytest.mark.parametrize(
    "text, want",
    [
        ("a <zorp>", [0, 1, 2]),
        ("a <zorp> <zorp>_1 <zorp>_2", [0, 1, 2]),  # spelled out, as the web UI's users do
        ("a <zorp> <zorp>_1", [0, 1, 2]),
        ("a <zorp> <zorp>", [0, 1, 2, 0, 1, 2]),
        ("a <zorp>_1", [1]),
        ("a <one>", [3]),
        ("a <gap>", [4]),  # <gap>_2 without a <gap>_1 is another word
        ("a <gap>_2 <zorp>", [5, 0, 1, 2]),
    ],
)
def test_a_word_of_several_vectors_stands_for_all_of_them(text, want, folder):
    tokenizer, wide = load_tokenizer(folder), replace(CONFIG, vocab_size=SIZE + 6)
    tokenizer.add_tokens(["<zorp>", "<zorp>_1", "<zorp>_2", "<one>", "<gap>", "<gap>_2"])
    tail = [SIZE + i for i in want]
    for syntax in ("plain", "a1111"):
        ((_, (chunk, *others)),) = read_prompts([text], tokenizer, wide, syntax)[0].parts
        assert [i for i, _ in chunk][1:] == tail and not others
    found = tokenize(tokenizer, wide, text)[0].tolist()
    assert found[2 : 2 + len(tail)] == tail


def test_a_word_of_several_vectors_stays_in_one_chunk(folder):
    tokenizer, wide = load_tokenizer(folder), replace(CONFIG, vocab_size=SIZE + 3)
    tokenizer.add_tokens(["<zorp>", "<zorp>_1", "<zorp>_2"])
    before = "a " * (CONFIG.length - 4)  # two places are left
    ((_, chunks),) = read_prompts([f"{before} <zorp>"], tokenizer, wide)[0].parts
    assert [i for i, _ in chunks[-1]] == [SIZE, SIZE + 1, SIZE + 2] and len(chunks) == 2


def test_a_word_that_the_text_tower_has_no_row_for_is_refused_by_name(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<zorp>"])
    for call in (
        lambda: tokenize(tokenizer, CONFIG, "a <zorp> cat"),
        lambda: read_prompts(["a", "a <zorp> cat"], tokenizer, CONFIG),
        lambda: read_prompts(["a <zorp> cat"], tokenizer, CONFIG, "plain"),
        lambda: read_prompts(["a (<zorp>:1.2) cat"], tokenizer, CONFIG),
    ):
        with pytest.raises(
            SdjaxError, match=f"the tokenizer's word <zorp> has id {SIZE}, the text tower knows {SIZE} ids"
        ):
            call()
    assert tokenize(tokenizer, CONFIG, "a cat").shape == (1, CONFIG.length), "other prompts draw"
    narrow = replace(CONFIG, vocab_size=300)
    with pytest.raises(SdjaxError, match="the tokenizer's word in 'a red apple'"):
        tokenize(tokenizer, narrow, "a red apple")


def test_refusals(folder, tmp_path):
    with pytest.raises(SdjaxError, match="size 513"):
        train_bpe(captions(), 513, tmp_path)
    with pytest.raises(SdjaxError, match="size 4000: the captions have"):
        train_bpe(captions(), 4000, tmp_path)
    (tmp_path / "empty").mkdir()
    for read in (load_tokenizer, special_ids):
        with pytest.raises(SdjaxError, match=r"nowhere: no such folder; a tokenizer's vocab\.json"):
            read(tmp_path / "nowhere")
        with pytest.raises(SdjaxError, match=r"empty: no vocab\.json"):
            read(tmp_path / "empty")
    for name, content in [("merges.txt", "#version: 0.2\nzz qq\n"), ("added_tokens.json", '{"<')]:
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / name).write_text(content)
        with pytest.raises(SdjaxError, match=f"{name}: its tokenizer cannot be read"):
            load_tokenizer(tmp_path / name)
    with pytest.raises(SdjaxError, match=r"prompts\[1\]"):
        tokenize(load_tokenizer(folder), CONFIG, ["a", 3])
    with pytest.raises(SdjaxError, match="prompts is NoneType: a string or a list of strings"):
        tokenize(load_tokenizer(folder), CONFIG, None)


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json"])
def test_special_tokens_that_were_added(folder, tmp_path, place):
    shutil.copytree(folder, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text()) | {"pad_token": "<pad>"}
    if place == "added_tokens.json":
        (tmp_path / "a" / place).write_text(json.dumps({"<pad>": SIZE}))
    else:
        config["added_tokens_decoder"] = {str(SIZE): {"content": "<pad>", "special": True}}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "special_tokens_map.json").unlink(missing_ok=True)
    assert special_ids(tmp_path / "a")[2] == SIZE == load_tokenizer(tmp_path / "a").pad_token_id


def test_the_bundled_clip_vocabulary(tmp_path):
    tokenizer, prompt = clip_tokenizer(), "a photo of an astronaut riding a horse on mars"
    astronaut = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
    for config, pad in ((SD15.text, 49407), (SD21.text, 0)):
        ids = tokenize(tokenizer, config, [prompt, "!", ""])
        assert ids[0].tolist() == astronaut + [pad] * 65
        assert ids[1, :4].tolist() == [49406, 256, 49407, pad]  # SD 2 pads with 0, the "!" inside of words
        assert ids[2].tolist() == [49406, 49407] + [pad] * 75
        write_tokenizer(tokenizer, config, tmp_path)
        assert special_ids(tmp_path) == (49406, 49407, pad)
        assert tokenize(load_tokenizer(tmp_path), config, prompt)[0].tolist() == ids[0].tolist()
    assert [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in STRANGE] == [
        len(tokenizer(" " + text + "\n", add_special_tokens=False)["input_ids"]) for text in STRANGE
    ]
