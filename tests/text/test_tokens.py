"""Token ids of 10,500 strings of every script: transformers' own encoding of a folder, and CLIP's algorithm once more.

The second is OpenAI's CLIP `simple_tokenizer.py` (merges taken in the order of their ranks, the lowest first), behind
the normalisation of transformers: NFC (of an older Unicode than Python's), white space to one space, lower case.
"""

import random
import sys
import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import regex

from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15, SD21
from sdjax.text.tokenizer import BOS, EOS, byte_characters, clip_tokenizer, load_tokenizer, tokenize, write_tokenizer

COUNT = 10_500
SCRIPTS = [
    "Latin",
    "Greek",
    "Cyrillic",
    "Armenian",
    "Georgian",
    "Hebrew",
    "Arabic",
    "Syriac",
    "Devanagari",
    "Bengali",
    "Tamil",
    "Telugu",
    "Thai",
    "Lao",
    "Tibetan",
    "Myanmar",
    "Khmer",
    "Ethiopic",
    "Cherokee",
    "Mongolian",
    "Hiragana",
    "Katakana",
    "Han",
    "Hangul",
    "Yi",
    "Gothic",
    "Egyptian_Hieroglyphs",
]
CLASSES = {
    "controls": r"[\p{Cc}\p{Cf}]",
    "marks": r"\p{M}",
    "numbers": r"\p{N}",
    "punctuation": r"\p{P}",
    "symbols": r"\p{S}",
    "spaces": r"\s",
    "private use": r"\p{Co}",
    "capitals": r"\p{Lu}",
    "emoji": r"\p{Extended_Pictographic}",
    "right to left": r"\p{Bidi_Class=R}|\p{Bidi_Class=AL}",
    "ascii": r"[\x00-\x7f]",
}
PIECES = [
    "a photo of",
    " an ASTRONAUT",
    "riding",
    "it's",
    "we'll've",
    "  \t\n",
    "👩🏽‍🚀",
    "🏳️‍🌈",
    "🇺🇳",
    "1️⃣",
    "e\u0301",
    "İ",
    "ΟΔΟΣ",
    "ﬁ",
    "\u202eabc\u202c",
    "\u200d",
    "\ufeff",
    "\0",
    "</w>",
    "Ġ",
    "<|endoftext|",
    "&amp;",
    "((red:1.2))",
    "!!!",
    "3.14",
]


@cache
def alphabets() -> list[list[str]]:
    """The assigned characters of every script and class, some 140,000, as Python's Unicode knows them."""
    known = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs"))
    return [
        regex.findall(pattern, known) for pattern in (*(rf"\p{{Script={name}}}" for name in SCRIPTS), *CLASSES.values())
    ]


@cache
def strings() -> list[str]:
    rng, found = random.Random(0), ["", " ", "a" * 50_000, "😀" * 20_000, "a b " * 20_000, "\u0301" * 10_000]
    while len(found) < COUNT:
        letters, others = rng.choice(alphabets()), rng.choice(alphabets())
        parts = [
            rng.choice(PIECES)
            if rng.random() < 0.2
            else "".join(rng.choices(letters if rng.random() < 0.7 else others, k=rng.randint(1, 8)))
            for _ in range(rng.choice([1, 2, 4, 12]))
        ]
        found.append(rng.choice(["", " "]).join(parts))
    return found


@cache
def word_ids(word: str) -> tuple[int, ...]:
    """CLIP's byte pair encoding of one word."""
    ids, ranks = vocabulary()
    parts = [byte_characters()[PLACES[b]] for b in word.encode()]
    parts[-1] += "</w>"
    while len(parts) > 1:
        ranked = [(ranks.get(pair, 1 << 30), pair) for pair in pairwise(parts)]
        rank, (left, right) = min(ranked)
        if rank == 1 << 30:
            break
        merged, i = [], 0
        while i < len(parts):
            both = tuple(parts[i : i + 2]) == (left, right)
            merged.append(left + right if both else parts[i])
            i += 1 + both
        parts = merged
    return tuple(ids[part] for part in parts)


PLACES = {
    b: i
    for i, b in enumerate(sorted(range(256), key=lambda b: (not (33 <= b <= 126 or 161 <= b <= 172 or b >= 174), b)))
}  # byte -> its place in byte_characters


@cache
def vocabulary():
    import gzip

    from sdjax.text.tokenizer import CLIP_MERGES

    merges = [tuple(line.split()) for line in gzip.decompress(CLIP_MERGES.read_bytes()).decode().split("\n")[1:48895]]
    tokens = [*byte_characters(), *(c + "</w>" for c in byte_characters()), *map("".join, merges), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}, {merge: i for i, merge in enumerate(merges)}


def clip_ids(text: str) -> list[int]:
    """The tokens of `text` without start and end."""
    text = clip_tokenizer().backend_tokenizer.normalizer.normalize_str(text)
    words = regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", text)
    return [i for word in words for i in word_ids(word)]


def test_ids_are_those_of_transformers(tmp_path):
    """The single file's tokenizer against CLIPTokenizer of a folder, which brackets, cuts and pads by itself."""
    write_tokenizer(clip_tokenizer(), SD15.text, tmp_path)
    whole = load_tokenizer(tmp_path)(strings(), padding="max_length", max_length=77, truncation=True)
    theirs, mask = (np.array(whole[name]) for name in ("input_ids", "attention_mask"))
    assert theirs.shape == (COUNT, 77)
    np.testing.assert_array_equal(tokenize(clip_tokenizer(), SD15.text, strings()), theirs)
    np.testing.assert_array_equal(tokenize(clip_tokenizer(), SD21.text, strings()), np.where(mask, theirs, 0))


def test_ids_are_those_of_clips_algorithm():
    ours = clip_tokenizer()(strings(), add_special_tokens=False, verbose=False)["input_ids"]
    different = [
        (text[:60], a[:9]) for text, a in zip(strings(), ours, strict=True) if len(text) < 1000 and a != clip_ids(text)
    ]
    assert different == []
    assert sum(map(len, ours)) > 30 * COUNT


def test_the_normalisation_is_the_documented_one():
    """On text without marks that are younger than its tables."""
    normalise = clip_tokenizer().backend_tokenizer.normalizer.normalize_str
    for text in strings():
        if not regex.search(r"\p{M}", text):
            plain = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
            assert normalise(text) == "".join(c.lower() for c in plain)  # one by one: no final sigma


def test_the_strings_are_of_many_kinds():
    assert len(set(strings())) >= 10_000 and all(len(letters) > 20 for letters in alphabets())
    seen = set().union(*strings())
    for pattern in (*(rf"\p{{Script={name}}}" for name in SCRIPTS), *CLASSES.values()):
        assert len(regex.findall(pattern, "".join(seen))) > 20, pattern


def test_special_tokens_in_a_prompt_are_read_as_transformers_does():
    assert tokenize(clip_tokenizer(), SD15.text, f"a {EOS} b")[0, :5].tolist() == [49406, 320, 49407, 321, 49407]


def test_half_a_character_is_refused():
    with pytest.raises(SdjaxError, match=r"prompts\[1\] is no Unicode text"):
        tokenize(clip_tokenizer(), SD15.text, ["a", "b\ud83d"])
