"""Turns prompts, read as AUTOMATIC1111's web UI reads them, into token ids and their weights.

    (word)  [word]        times 1.1, divided by 1.1; they nest, and multiply
    (some words:1.3)      times 1.3
    \\(  \\)  \\[  \\]  \\\\    the character itself; before anything else a backslash disappears
    BREAK                 what follows begins a new chunk
    a cat AND a dog:0.7   two prompts, each with its weight, composed in guidance (arXiv 2206.01714)

A text tower of `length` positions reads chunks of length - 2 tokens. A long prompt takes several chunks, and each adds
`length` positions to the context. A full chunk is cut behind its last comma if that leaves at most 20 of 75 tokens
empty. `conditioning.text.emphasise` applies the weights. The web UI's files that this follows are `prompt_parser.py`
and `sd_hijack_clip.py`.

It differs from the web UI in three ways. BREAK inside brackets breaks too. A weight counts for a whole prompt only next
to an AND (the web UI takes "at 12:30" for a weight of 30). Prompt editing, [from:to:when] and [a|b], is read as text,
and a note says so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.text.syntax import FOREIGN, SYNTAXES, Piece, compose, parse
from sdjax.text.tokenizer import TextShape, token_ids, words_of_several


class Prompt(NamedTuple):
    """A prompt that was read: the parts that AND composes."""

    parts: list[tuple[float, list[list[tuple[int, float]]]]]  # (weight, chunks of (token id, weight) pairs) for each
    notes: list[str]  # what was not understood, or was cut

    @property
    def shape(self) -> tuple[int, int]:
        """(number of parts, number of chunks of the longest part)."""
        return len(self.parts), max(len(chunks) for _, chunks in self.parts)


class Tokens(NamedTuple):
    """Prompts of one shape: the text tower's input, as numpy arrays with the prompt as the first axis."""

    ids: np.ndarray  # int32 [B, P, K, length]: P composed prompts of K chunks
    weights: np.ndarray  # float32 [B, P, K, length]: of the tokens
    mix: np.ndarray  # float32 [B, P]: of the composed prompts


def read_prompts(
    prompts: Sequence[str],
    tokenizer,
    config: TextShape,
    syntax: str = "a1111",
    embeddings: Mapping[str, Sequence[int]] | None = None,
    composed: bool = True,
) -> list[Prompt]:
    """Reads strings as Prompts.

    tokenizer: a transformers.CLIPTokenizer.
    config: the text tower's config.
    syntax: "a1111" (see the top of the file), or "plain", which has no special characters and cuts what is too long.
    embeddings: word -> the ids that it stands for, for textual inversion.
    composed: True: AND joins prompts; False: AND is text.
    SdjaxError: an unknown syntax.
    """
    if syntax not in SYNTAXES:
        raise SdjaxError(f"syntax {syntax!r}: one of {', '.join(SYNTAXES)}")
    plain, embeddings = syntax == "plain", embeddings or {}
    names = sorted(embeddings, key=len, reverse=True)
    edge = lambda name, i: r"\b" if re.match(r"\w", name[i]) else ""
    name_in = re.compile("|".join(f"({edge(n, 0)}{re.escape(n)}{edge(n, -1)})" for n in names) or r"(?!)", re.I)

    found, texts = [], {",": None}  # texts: an ordered set, tokenized in one call
    for prompt in prompts:
        parts, notes = [], []
        for text, weight in [(prompt, 1.0)] if plain or not composed else compose(prompt):
            pieces, said = ([Piece(text, 1.0)], []) if plain else parse(text)
            notes += said
            split = []  # texts, ids of embeddings, and None for a BREAK
            for piece in pieces:
                last = 0
                for match in name_in.finditer(piece.text or ""):
                    ids = tuple(embeddings[names[match.lastindex - 1]])
                    split += [(piece.text[last : match.start()], piece.weight), (ids, piece.weight)]
                    last = match.end()
                split.append((piece.text and piece.text[last:], piece.weight))
            texts |= dict.fromkeys(text for text, _ in split if isinstance(text, str))
            parts.append((weight, split))
        if not plain:
            notes += [note for pattern, note in FOREIGN.items() if re.search(pattern, prompt)]
        found.append((parts, list(dict.fromkeys(notes))))

    ids, size = dict(zip(texts, token_ids(tokenizer, config, list(texts)), strict=True)), config.length - 2
    several = words_of_several(getattr(tokenizer, "added_tokens_encoder", {}))

    def units(split):
        for text, weight in split:
            if isinstance(text, str):
                yield from ((word, weight) for word in words_in(ids[text], several))
            else:
                yield None if text is None else (text, weight)

    out = []
    for parts, notes in found:
        cut = [
            (weight, chunks(units(split), size, 0 if plain else 20 * size // 75, tuple(ids[","])))
            for weight, split in parts
        ]
        if plain and len(cut[0][1]) > 1:
            notes.append(f"cut to its first {size} tokens of {sum(map(len, cut[0][1]))}")
            cut = [(1.0, cut[0][1][:1])]
        out.append(Prompt(cut, notes))
    return out


def words_in(ids: Sequence[int], several: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Yields the ids of each word: one, or all of a word of several vectors, which stay in one chunk."""
    i = 0
    while i < len(ids):
        word = several.get(ids[i], (ids[i],))
        yield word
        i += len(word)


def chunks(units, size: int, backtrack: int, comma: tuple[int, ...]) -> list[list[tuple[int, float]]]:
    """Divides units (ids, weight) into chunks of at most `size` tokens; there is at least one chunk.

    A unit is never divided, and a unit of None ends a chunk. If the next token does not fit, the tokens after the last
    comma move to the next chunk with it, provided that the comma is at most `backtrack` tokens back.
    """
    done, chunk, last = [], [], -1  # last: where the chunk's last comma is
    for unit in units:
        if unit is None:
            done, chunk, last = [*done, chunk], [], -1
            continue
        ids, weight = unit
        if ids == comma:
            last = len(chunk)
        elif len(chunk) == size and last >= 0 and size - last <= backtrack:
            done, chunk, last = [*done, chunk[: last + 1]], chunk[last + 1 :], -1
        if len(chunk) + len(ids) > size:
            done, chunk, last = [*done, chunk], [], -1
        chunk = chunk + [(i, weight) for i in ids]
    return [*done, chunk] if chunk or not done else done


def stack(prompts: Sequence[Prompt], config: TextShape, shape: tuple[int, int] | None = None) -> Tokens:
    """Stacks prompts into Tokens of one shape (parts, chunks), by default the largest one. They are filled up with
    empty chunks, and with parts of weight 0."""
    p, k = shape or tuple(max(sizes) for sizes in zip(*(prompt.shape for prompt in prompts), strict=True))
    ids = np.full((len(prompts), p, k, config.length), config.pad_token, np.int32)
    weights, mix = np.ones(ids.shape, np.float32), np.zeros((len(prompts), p), np.float32)
    ids[..., 0], ids[..., 1] = config.bos_token, config.eos_token
    for b, prompt in enumerate(prompts):
        for i, (weight, found) in enumerate(prompt.parts):
            mix[b, i] = weight
            for j, chunk in enumerate(found):
                end = len(chunk) + 1
                ids[b, i, j, 1:end] = [token for token, _ in chunk]
                weights[b, i, j, 1:end] = [value for _, value in chunk]
                ids[b, i, j, end] = config.eos_token
    return Tokens(ids, weights, mix)
