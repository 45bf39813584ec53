"""Trains the UNet to predict the noise (or v) that was added to latents; the text tower and the VAE are frozen.

python train/train_diffusion.py --data DIR --model FOLDER --out RUN --steps 10000
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from sdjax.data.order import Chosen
from sdjax.data.source import Pictures
from sdjax.errors import SdjaxError, prefixed
from sdjax.families.table import NAMED
from sdjax.training.captions import Table, batch_shapes
from sdjax.training.conditions import (
    CONDITIONS,
    conditioned,
    conditioner,
    merged,
    reads_captions,
    starting_params,
    text_null,
)
from sdjax.training.diffusion_options import DiffusionOptions
from sdjax.training.loop import export
from sdjax.training.options import check_channels
from sdjax.training.pictures import Part, as_asked, loss_as_asked, sample_prompts, train_on_pictures, with_views
from sdjax.training.sizes import bucket_multiple
from sdjax.training.start import open_pictures, start_model
from sdjax.types import Params


@dataclass(frozen=True)
class Options(DiffusionOptions):
    condition: Literal["text", "class", "layout", "map", "mask", "depth", "lowres", "none"] = "text"
    """What pictures are asked for by. class, layout, map, depth come from the columns class, boxes, map_file_name and
    depth_file_name of metadata.jsonl, mask and lowres from mask_file_name and lowres_file_name or are made. A class or
    a layout replaces captions; the others stand beside those of a model of text."""

    def __post_init__(self):
        if self.model in NAMED:  # other models are checked once they are loaded
            check_channels(self.model, NAMED[self.model], self.condition, self.beside)
        if self.condition != "text" and not self.sample_prompts.lstrip("-").isdecimal():
            raise SdjaxError(f"--sample-prompts {self.sample_prompts}: a number with --condition {self.condition}")
        super().__post_init__()

    @property
    def beside(self) -> bool:
        """True if the condition stands beside the latents."""
        kind = CONDITIONS[self.condition]
        return kind.keeps_text and kind.column is not None


def main(options: Options) -> None:
    """Train the UNet of a latent diffusion model on a folder of captioned pictures."""
    kind = CONDITIONS[options.condition]
    sd = start_model(options, tokenizer=kind.keeps_text, without="unet")
    check_channels(options.model, sd.config, options.condition, options.beside)
    options, sd = with_views(options), as_asked(sd, options)
    multiple, size = bucket_multiple(sd.config), sd.config.size
    captions = reads_captions(options.condition, sd.config) and options.condition == "text"
    reopen = lambda options: open_pictures(options, size, multiple, kind.column, captions)
    source = reopen(options)
    with prefixed("model: "):
        sd = conditioned(sd, options.condition, source, options.caption_dropout > 0)
    null = text_null(sd) if reads_captions(options.condition, sd.config) else None
    loss_fn = loss_as_asked(options, sd.config, conditioner(sd.config, options.condition, null))
    whole = lambda params: merged(sd, options.condition, params)
    part = Part(starting_params(sd, options.condition, options.seed), loss_fn, whole)
    make_table = lambda source, cache, views: Table(sd, source, cache, views, options.condition)
    shapes = batch_shapes(sd.config, options.examples, options.condition)
    asked = partial(samples, sd, source, options)
    params = train_on_pictures(options, part, source, reopen, make_table, shapes, asked)
    if params is not None:
        export(options, whole(params))


def samples(sd, source: Pictures, options: Options, table: Table) -> Callable[[Params], dict[str, Any]]:
    """Returns a function of the trained parameters that gives what sample grids are asked for, as {"prompt": ...}.

    That is captions, a Cond, or None for a model that is conditioned on nothing.
    """
    if options.condition == "text" or not options.sample_prompts.isdecimal():
        return lambda params: {"prompt": sample_prompts(options, source)}
    many = int(options.sample_prompts)
    if options.condition == "none" or not options.sample_every:
        return lambda params: {"prompt": None}
    rows = np.array([row for row in source.groups[0] if row not in source.known])
    rows = rows[:: max(1, len(rows) // many)][:many]
    batch = table.batch(Chosen(rows, np.zeros(len(rows), int), 0), rows.astype(np.uint32))
    made = conditioner(sd.config, options.condition, batch.context if batch.context is None else batch.context[0])
    kept, key = np.zeros(len(rows), bool), jax.random.key(0)
    return lambda params: {"prompt": made(params, batch, kept, key)[1]}
