"""Trains a small tokenizer in CLIP's own format."""

import json
from collections.abc import Iterable
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.text.tokenizer import (
    BOS,
    EOS,
    byte_characters,
    clip_tokenizer,
    load_tokenizer,
    write_tokenizer_files,
)


def train_bpe(captions: Iterable[str], size: int, folder: str | Path, length: int = 77):
    """Trains a CLIP tokenizer, writes it to `folder` and returns it as `load_tokenizer` does.

    captions: the texts to train on.
    size: the exact number of entries. The start token has the id size - 2; end and padding have size - 1.
    length: recorded as the tokenizer's model_max_length, and not used otherwise.
    SdjaxError: `size` is below 514, or the captions do not give enough merges for it.
    """
    from tokenizers import Tokenizer, models, trainers

    characters = byte_characters()
    base = characters + [c + "</w>" for c in characters]
    if size < len(base) + 2:
        raise SdjaxError(f"size {size}: a byte-level vocabulary has at least {len(base) + 2} entries")
    reference = clip_tokenizer().backend_tokenizer  # its normaliser and word pattern are CLIP's
    scratch = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    scratch.normalizer, scratch.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    # The base is given as "special tokens", which fixes its ids, so that ties between merges always break the same way.
    trainer = trainers.BpeTrainer(
        vocab_size=2 * size, min_frequency=1, special_tokens=base, end_of_word_suffix="</w>", show_progress=False
    )
    scratch.train_from_iterator(captions, trainer)

    vocabulary, merges = dict.fromkeys(base), []  # an ordered set
    for left, right in json.loads(scratch.to_str())["model"]["merges"]:
        if left + right not in vocabulary:
            if len(vocabulary) == size - 2:
                break
            vocabulary[left + right] = None
        merges.append(f"{left} {right}")
    if len(vocabulary) < size - 2:
        raise SdjaxError(f"size {size}: the captions have words for {len(vocabulary) + 2} entries only")
    tokens = [*vocabulary, BOS, EOS]
    write_tokenizer_files(folder, {token: i for i, token in enumerate(tokens)}, merges, EOS, length)
    return load_tokenizer(folder)
