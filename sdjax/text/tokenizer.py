"""Turns texts into token ids with CLIP's BPE (arXiv 2103.00020).

The steps are: NFC, runs of white space to one space, lower case, words split by CLIP's pattern, UTF-8 bytes written as
256 printable characters, the last character of a word marked `</w>`, then merges in the order of `merges.txt`. The ids
are 256 bytes, 256 bytes with `</w>`, one per merge, start, end. Every byte is in the vocabulary, so no text is unknown.
transformers is imported only inside functions, because importing it takes seconds.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdjax.errors import SdjaxError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = Path(__file__).parents[1] / "pretrained" / "clip_vocab" / "bpe_simple_vocab_16e6.txt.gz"


class TextShape(Protocol):
    """The fields of a text tower's config that this package needs."""

    vocab_size: int  # number of ids that the tower knows
    length: int  # number of tokens that a prompt is padded to
    bos_token: int
    eos_token: int
    pad_token: int


def check_files(folder: Path, *names: str) -> None:
    """SdjaxError if a folder holds neither the named files of a CLIP tokenizer nor a tokenizer.json."""
    if not folder.is_dir():
        raise SdjaxError(f"{folder}: no such folder; a tokenizer's vocab.json and merges.txt are expected there")
    if not all((folder / name).is_file() for name in names) and not (folder / "tokenizer.json").is_file():
        raise SdjaxError(f"{folder}: no vocab.json and merges.txt (nor tokenizer.json) of a CLIP tokenizer there")


def load_tokenizer(folder: str | Path, word_pieces: bool = False):
    """Returns the transformers.CLIPTokenizer in a folder that holds vocab.json and merges.txt (or tokenizer.json).

    word_pieces: return the transformers.BertTokenizer in a folder that holds vocab.txt (or tokenizer.json).
    SdjaxError: the files are missing or broken.
    """
    folder = Path(folder)
    if not word_pieces:
        check_files(folder, "vocab.json", "merges.txt")
    elif not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise SdjaxError(f"{folder}: no vocab.txt (nor tokenizer.json) of a BERT tokenizer there")
    kind = tokenizer_class("Bert" if word_pieces else "CLIP")
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever a broken file leads to
        raise SdjaxError(f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:160]})") from None


def tokenizer_class(name: str) -> Any:
    """Returns the class of transformers that tokenizes for "CLIP" or "Bert" in Rust, in its versions 4 and 5.

    It is imported without a line that says that PyTorch was not found.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return getattr(transformers, f"{name}Tokenizer{'' if has_one_class(transformers) else 'Fast'}")


def has_one_class(transformers: Any) -> bool:
    """Is this version 5 of transformers or a later one, which has one class for each tokenizer?"""
    return int(transformers.__version__.partition(".")[0]) >= 5


@cache
def clip_tokenizer():
    """Returns CLIP's own tokenizer of 49,408 entries, for model files that come without one. Nothing is downloaded.

    Its padding token is the end token, also for SD 2, which pads with id 0 ("!"). If "!" were declared as padding,
    transformers would read "!" in a prompt as 0, while SD 2's own tokenizer reads 256. `tokenize` pads with the
    config's token in any case.
    """
    import gzip
    import tempfile

    characters = byte_characters()
    base = characters + [c + "</w>" for c in characters]
    merges = gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf-8").split("\n")[1 : 49408 - len(base) - 1]
    tokens = [*base, *(merge.replace(" ", "") for merge in merges), BOS, EOS]
    kind, vocabulary = tokenizer_class("CLIP"), {token: i for i, token in enumerate(tokens)}
    import transformers

    if has_one_class(transformers):
        return kind(vocab=vocabulary, merges=[tuple(m.split()) for m in merges])
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(folder, vocabulary, merges, EOS, 77)
        return load_tokenizer(folder)


def special_ids(folder: str | Path) -> tuple[int, int, int]:
    """Returns the (start, end, padding) ids of the tokenizer in `folder`. It reads only the JSON files, and does not
    import transformers. SdjaxError: an id is not there."""
    folder = Path(folder)

    def read(name):
        return json.loads((folder / name).read_text("utf-8-sig")) if (folder / name).is_file() else {}

    check_files(folder, "vocab.json")
    try:
        whole = read("tokenizer.json") if not (folder / "vocab.json").is_file() else {}
        vocabulary = read("vocab.json") or whole.get("model", {}).get("vocab", {})
        special = read("tokenizer_config.json") | read("special_tokens_map.json")
        added = {token["content"]: token["id"] for token in whole.get("added_tokens", ())} | read("added_tokens.json")
        listed = {token["content"]: int(i) for i, token in special.get("added_tokens_decoder", {}).items()}
        text = lambda value: value["content"] if isinstance(value, dict) else value
        tokens = [
            text(special.get(f"{name}_token") or default)
            for name, default in (("bos", BOS), ("eos", EOS), ("pad", EOS))
        ]
        return tuple(int((listed | vocabulary | added)[token]) for token in tokens)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SdjaxError(f"{folder}: no start, end and padding token in vocab.json ({error!r})") from None


def word_piece_ids(folder: str | Path) -> tuple[int, int, int]:
    """Returns the ids of [CLS], [SEP] and [PAD] of the BERT tokenizer in `folder`, from vocab.txt or tokenizer.json.

    SdjaxError: one is not there.
    """
    folder = Path(folder)
    try:
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text("utf-8").splitlines()
            vocabulary = {word: i for i, word in enumerate(lines)}
        else:
            vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8-sig"))["model"]["vocab"]
        return tuple(int(vocabulary[word]) for word in ("[CLS]", "[SEP]", "[PAD]"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SdjaxError(f"{folder}: no [CLS], [SEP] and [PAD] in vocab.txt or tokenizer.json ({error!r})") from None


def as_list(prompts: str | Sequence[str]) -> list[str]:
    """Returns one prompt or several as a list. SdjaxError: one is no string, or holds half of a surrogate pair."""
    if not isinstance(prompts, Iterable):
        raise SdjaxError(f"prompts is {type(prompts).__name__}: a string or a list of strings")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise SdjaxError(f"prompts[{i}] is {type(prompt).__name__}: prompts are strings")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise SdjaxError(f"prompts[{i}] is no Unicode text: {prompt[:80]!a}")
    return prompts


def tokenize(tokenizer, config: TextShape, prompts: str | Sequence[str]) -> np.ndarray:
    """Returns the ids of prompts, int32 [B, config.length]: start, tokens (cut to fit), end, padding
    (config.pad_token).

    It knows no syntax of prompts; see prompt.py for that. SdjaxError: as `as_list` and `token_ids`.
    """
    return tokenize_counted(tokenizer, config, prompts)[0]


def tokenize_counted(tokenizer, config: TextShape, prompts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns `tokenize` and how many tokens each prompt has, [B], those that were cut included."""
    prompts = as_list(prompts)
    ids, counts = np.full((len(prompts), config.length), config.pad_token, np.int32), np.zeros(len(prompts), int)
    for i, found in enumerate(token_ids(tokenizer, config, prompts)):
        fitting = [config.bos_token, *found[: config.length - 2], config.eos_token]
        ids[i, : len(fitting)], counts[i] = fitting, len(found)
    return ids, counts


def token_ids(tokenizer, config: TextShape, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of texts, without start and end, and with all ids of words that stand for several vectors.

    SdjaxError: the tokenizer has a word in a text that the text tower has no row for; the message names it.
    """
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    added = getattr(tokenizer, "added_tokens_encoder", {})
    several = words_of_several(added)
    for text, ids in zip(texts, found, strict=True):
        if ids and max(ids) >= config.vocab_size:
            lost = next(i for i in ids if i >= config.vocab_size)
            word = next((word for word, i in added.items() if i == lost), f"in {text[:80]!r}")
            raise SdjaxError(
                f"prompt: the tokenizer's word {word} has id {lost}, the text tower knows {config.vocab_size} ids; the "
                "two are not of one model"
            )
    return [whole_words(ids, several) for ids in found] if several else found


def words_of_several(added: Mapping[str, int]) -> dict[int, tuple[int, ...]]:
    """Returns the ids that added words stand for, by the word's own id: those of <a>, <a>_1 and <a>_2 by <a>'s.

    So diffusers saves a textual inversion of several vectors (loaders/textual_inversion.py, maybe_convert_prompt).
    """
    several = {}
    for word, i in added.items():
        ids = [i]
        while (following := added.get(f"{word}_{len(ids)}")) is not None:
            ids.append(following)
        if len(ids) > 1:
            several[i] = tuple(ids)
    return several


def whole_words(ids: Sequence[int], several: Mapping[int, tuple[int, ...]]) -> list[int]:
    """Returns ids in which each word of several vectors has all of them, once, however many the text spells out."""
    found, i = [], 0
    while i < len(ids):
        word, i = several.get(ids[i], (ids[i],)), i + 1
        found += word
        for vector in word[1:]:
            i += i < len(ids) and ids[i] == vector
    return found


def byte_characters() -> list[str]:
    """Returns the 256 printable characters that stand for bytes, in CLIP's order: printable Latin-1 first, then others.

    See bytes_to_unicode in OpenAI GPT-2's `encoder.py`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_tokenizer(tokenizer, config: TextShape, folder: str | Path) -> None:
    """Writes a CLIPTokenizer as vocab.json, merges.txt and two small files, which hold the words that were added to it,
    for example by textual inversion.

    For SD 2 the files declare "!" as padding, as in diffusers' folders. A tokenizer that is read from them therefore
    gives 0 for "!" in a prompt, while the one for single files gives 256 (`clip_tokenizer`).
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pad = next((token for token, i in model["vocab"].items() if i == config.pad_token), EOS)
    added = {str(i): token for i, token in tokenizer.added_tokens_decoder.items() if i >= len(model["vocab"])}
    write_tokenizer_files(folder, model["vocab"], merges, pad, config.length, added)


def write_tokenizer_files(
    folder: str | Path,
    vocabulary: dict[str, int],
    merges: list[str],
    pad: str,
    length: int,
    added: Mapping[str, Any] | None = None,
):
    """Writes a tokenizer's four files to `folder`.

    vocabulary: token -> id.
    merges: the lines of merges.txt.
    pad: the padding token.
    length: recorded as model_max_length.
    added: id, as text -> the AddedToken of a word that was added.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    }
    if added:
        config["added_tokens_decoder"] = {i: token.__getstate__() for i, token in added.items()}
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8")
    write("vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write("merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write("special_tokens_map.json", json.dumps(special, indent=2) + "\n")
    write("tokenizer_config.json", json.dumps(config, indent=2) + "\n")
