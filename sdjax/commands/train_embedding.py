"""Teaches a model a new word by textual inversion (arXiv 2208.01618): the word's vectors alone are trained.

python train/train_embedding.py --data DIR --out RUN --token "<zorp>" --init-word emoji
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.adapters.embedding import OF_TOWERS, with_word
from sdjax.data.source import Pictures
from sdjax.errors import SdjaxError, log, prefixed
from sdjax.families.table import family_of
from sdjax.files import written_whole
from sdjax.formats.mapped import write_tensors
from sdjax.model.value import StableDiffusion
from sdjax.training.captions import Table, batch_shapes
from sdjax.training.diffusion_options import PartOptions
from sdjax.training.loop import on_primary
from sdjax.training.options import check_channels
from sdjax.training.pictures import Part, as_asked, loss_as_asked, sample_prompts, train_on_pictures, with_views
from sdjax.training.sizes import bucket_multiple
from sdjax.training.start import open_pictures, start_model
from sdjax.training.text import captions_given, check_clip_text, empty_tokens, read_cond, tokens_of, towers_of
from sdjax.types import Array, Batch, Cond, Params


@dataclass(frozen=True)
class Options(PartOptions):
    learning_rate: float = 5e-4
    caption_dropout: float = 0.0
    """Share of captions replaced by the empty one, which teach the word nothing."""
    token: str = ""
    """The new word, as "<zorp>"; captions of the data have it, with or without < and >."""
    init_word: str | None = None
    """A word of the vocabulary whose vectors it begins with; when not given, the mean of all vectors."""
    vectors: int = 1
    """So many vectors, each of which takes a token of the prompt."""

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(r"<[\w-]+>|[\w-]+", self.token):
            raise SdjaxError(f"token {self.token!r}: a word of letters, digits, _ and -, as <zorp>, expected")
        if self.vectors < 1:
            raise SdjaxError(f"vectors {self.vectors}: expected at least 1")

    @property
    def plain(self) -> str:
        """The word without < and >."""
        return self.token.strip("<>")


def main(options: Options) -> None:
    """Teach a model a new word on a folder of captioned pictures."""
    sd = start_model(options, exported=f"{options.plain}.safetensors", keep_dtype=True)
    check_channels(options.model, sd.config)
    check_clip_text(options.model, sd.config)
    options, sd = with_views(options), as_asked(sd, options)
    tree = initial_vectors(sd, options)
    sd = with_vectors(sd, options.token, tree)
    multiple, size = bucket_multiple(sd.config), sd.config.size

    def reopen(options: Options) -> Pictures:
        source = open_pictures(options, size, multiple)
        source.texts = with_token(source.texts, options)
        return source

    source = reopen(options)
    part = embedding_part(sd, options, tree)
    make_table = lambda source, cache, views: Table(
        sd, source, cache, views, given=captions_given(sd, source), states=False
    )
    shapes = batch_shapes(sd.config, options.examples, live=True)
    asked = lambda table: lambda params: {"prompt": sample_prompts(options, source)}
    params = train_on_pictures(options, part, source, reopen, make_table, shapes, asked)
    if params is not None:
        on_primary(lambda: print(write_embedding(options.out / "export", sd, options, params)))


def with_token(texts: Any, options: Options) -> tuple[str, ...]:
    """Returns captions with the token, where they have it without < and >. SdjaxError: none has it."""
    plain = re.compile(rf"(?<![\w<]){re.escape(options.plain)}(?![\w>])", re.I)
    if not any(options.token.lower() in text.lower() for text in texts):
        count = sum(bool(plain.search(text)) for text in texts)
        if not count:
            raise SdjaxError(f"token {options.token}: no caption of {options.data} has it")
        log.info("token %s: %d captions of %s have it as %s", options.token, count, options.data, options.plain)
        texts = [plain.sub(lambda match: options.token, text) for text in texts]
    return tuple(texts)


def initial_vectors(sd: StableDiffusion, options: Options) -> Params:
    """Returns the vectors that a word begins with, by the text towers' names, float32 [n, D] each.

    SdjaxError: the vocabulary has no such word to begin with, or there are more vectors than a prompt takes.
    """
    if options.vectors > sd.config.text.length - 2:
        raise SdjaxError(f"vectors {options.vectors}: a prompt of {sd.config.name} takes {sd.config.text.length - 2}")
    found, ids = {}, None
    if options.init_word is not None:
        plain = replace(sd, embeddings={})
        row = tokens_of(plain, [options.init_word])[0][0, 0]
        ids = row[1 : 1 + np.flatnonzero(row[1:] == sd.config.text.eos_token)[0]]
        if not len(ids):
            raise SdjaxError(f"init_word {options.init_word!r}: a word expected")
        if len(ids) > options.vectors:
            log.warning(
                "init_word %s: is %d tokens, of which the first %d are taken",
                options.init_word,
                len(ids),
                options.vectors,
            )
    for name in towers_of(sd.config):
        table = np.asarray(sd.params[name]["token_embedding"]["embedding"], np.float32)
        rows = table.mean(0, keepdims=True) if ids is None else table[ids]
        found[name] = rows[np.arange(options.vectors) * len(rows) // max(options.vectors, len(rows))]
    return found


def with_vectors(sd: StableDiffusion, token: str, tree: Params) -> StableDiffusion:
    """Returns the model with a word that stands for these vectors. SdjaxError: prompts cannot hold the word."""
    with prefixed("token: "):
        return with_word(sd, embedding_tensors(sd, token, tree), "the token", token)


def embedding_tensors(sd: StableDiffusion, token: str, tree: Params) -> dict[str, np.ndarray]:
    """Returns the tensors of an embedding's file: diffusers' {token: [n, D]}, of SDXL clip_l and clip_g."""
    towers = towers_of(sd.config)
    if len(towers) == 1:
        return {token: np.ascontiguousarray(tree["text"], np.float32)}
    folders = {name: family_of(sd.config).parts[name].folder for name in towers}
    return {OF_TOWERS[folders[name]]: np.ascontiguousarray(tree[name], np.float32) for name in towers}


def embedding_part(sd: StableDiffusion, options: Options, tree: Params) -> Part:
    """Returns a word's vectors as what is trained; all networks are frozen."""
    config, texts, nothing = sd.config, towers_of(sd.config), empty_tokens(sd)
    host = {part: jax.tree.map(np.asarray, sd.params[part]) for part in ("unet", *texts)}

    def cond(params: Params, batch: Batch, drop: Array, key: Array, frozen: Params) -> tuple[Params, Cond]:
        towers = {part: {"params": frozen[part]} for part in texts}
        return frozen["unet"], read_cond(config, towers, batch, drop, nothing, options.dtype, params)

    return Part(tree, loss_as_asked(options, config, cond), partial(with_vectors, sd, options.token), (host,))


def write_embedding(folder: Path, sd: StableDiffusion, options: Options, params: Params) -> Path:
    """Writes <token without < and >>.safetensors and returns its path."""
    path = folder / f"{options.plain}.safetensors"
    with written_whole(path) as scratch:
        write_tensors(scratch, embedding_tensors(sd, options.token, params))
    return path
