"""Trains the UNet to predict the noise (or v) that was added to latents; the text tower and the VAE are frozen.

python train/train_diffusion.py --data DIR --model FOLDER --out RUN --steps 10000
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import sdjax
from sdjax.data.order import Chosen, Order, read_ahead
from sdjax.data.source import Pictures
from sdjax.devices.processes import is_primary, local_part
from sdjax.errors import SdjaxError, prefixed
from sdjax.families.table import NAMED
from sdjax.files import read_prompts
from sdjax.tasks.parameters import describe
from sdjax.training.captions import Table, batch_shapes, hold_out, validation_batches
from sdjax.training.conditions import (
    CONDITIONS,
    conditioned,
    conditioner,
    merged,
    reads_captions,
    starting_params,
    text_null,
)
from sdjax.training.diffusion import diffusion_loss
from sdjax.training.loop import dry_run, export, fit
from sdjax.training.options import TrainOptions, check_channels, check_dtype, picture_size
from sdjax.training.sizes import bucket_multiple
from sdjax.training.start import open_pictures, start_model
from sdjax.types import Batch

VIEWS = 4  # views of each picture if it is flipped or cropped at random


@dataclass(frozen=True)
class Options(TrainOptions):
    model: str = "emoji"
    """The bundled model, a folder or a file to start from, or a preset to train from nothing (EMOJI, SD15, ...)."""
    condition: Literal["text", "class", "layout", "map", "mask", "depth", "lowres", "none"] = "text"
    """What pictures are asked for by. class, layout, map, depth come from the columns class, boxes, map_file_name and
    depth_file_name of metadata.jsonl, mask and lowres from mask_file_name and lowres_file_name or are made. A class or
    a layout replaces captions; the others stand beside those of a model of text."""
    prediction: str | None = None
    """What the network regresses: epsilon or v; the model's own when not given."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, of classes by the null class, of layouts by the empty layout, for
    classifier-free guidance. SDXL's two text embeddings are dropped each by itself. What stands beside the latents, and
    SDXL's sizes, are never dropped."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (arXiv 2303.09556), usually 5."""
    logit_normal: tuple[float, float] | None = None
    """Timesteps from a logit-normal distribution of this mean and spread instead of evenly: 1 1 prefers much noise."""
    noise_offset: float = 0.0
    """Standard deviation of a further noise that shifts each channel as a whole, often 0.05 to 0.1."""
    zero_terminal_snr: bool = False
    """Make the last timestep pure noise (arXiv 2305.08891); for v-prediction."""
    dtype: str = "float32"
    """Of the computation: float32 or bfloat16. Weights, optimiser and EMA are float32."""
    remat: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    views: int | None = None
    """Crops and flips of each picture that are encoded beforehand and then take turns; when not given 4 with --flip or
    --crop random, and 1 without."""
    size: int | None = None
    """Pixels a side; the model's own when not given."""
    validation: str | None = None
    """Number of pictures of --data that are held out, or a folder of others: their loss is logged."""
    sample_prompts: str = "16"
    """What sample grids draw: a number of captions of the data, or a file with a prompt a line."""

    def __post_init__(self):
        super().__post_init__()
        if self.model in NAMED:  # other models are checked once they are loaded
            check_channels(self.model, NAMED[self.model], self.condition, self.beside)
        if self.prediction not in (None, "epsilon", "v"):
            raise SdjaxError(f"--prediction {self.prediction}: expected epsilon or v")
        if not 0 <= self.caption_dropout <= 1:
            raise SdjaxError(f"--caption-dropout {self.caption_dropout}: expected a number in [0, 1]")
        if self.min_snr_gamma is not None and not 0 < self.min_snr_gamma < float("inf"):
            raise SdjaxError(f"--min-snr-gamma {self.min_snr_gamma}: expected a positive number")
        if self.logit_normal is not None and not (
            all(map(math.isfinite, self.logit_normal)) and self.logit_normal[1] > 0
        ):
            raise SdjaxError(f"--logit-normal {self.logit_normal}: expected a mean and a positive spread")
        if not 0 <= self.noise_offset < float("inf"):
            raise SdjaxError(f"--noise-offset {self.noise_offset}: expected a number from 0 on")
        check_dtype(self.dtype)
        if self.views is not None and self.views < 1:
            raise SdjaxError(f"--views {self.views}: expected at least 1")
        if (self.views or 1) > 1 and not self.varied:
            raise SdjaxError(f"--views {self.views}: all would be the same, give --flip or --crop random with it")
        if self.sample_prompts.lstrip("-").isdecimal():
            if int(self.sample_prompts) < 1:
                raise SdjaxError(f"--sample-prompts {self.sample_prompts}: expected at least 1")
        elif self.condition != "text":
            raise SdjaxError(f"--sample-prompts {self.sample_prompts}: a number with --condition {self.condition}")
        else:
            with prefixed("--sample-prompts "):
                read_prompts(self.sample_prompts)

    @property
    def beside(self) -> bool:
        """True if the condition stands beside the latents."""
        kind = CONDITIONS[self.condition]
        return kind.keeps_text and kind.column is not None

    @property
    def varied(self) -> bool:
        """True if a picture looks different in each view."""
        return self.flip or self.crop == "random"


def main(options: Options) -> None:
    """Train the UNet of a latent diffusion model on a folder of captioned pictures."""
    kind = CONDITIONS[options.condition]
    sd = start_model(options, tokenizer=kind.keeps_text, without="unet")
    check_channels(options.model, sd.config, options.condition, options.beside)
    if options.views == 1 and options.varied and is_primary():
        print("--views 1: each picture is cropped and flipped once, the same way in all epochs", file=sys.stderr)
    options = replace(options, views=options.views or (VIEWS if options.varied else 1))
    schedule = sd.config.schedule
    schedule = replace(
        schedule,
        prediction=options.prediction or schedule.prediction,
        zero_terminal_snr=options.zero_terminal_snr or schedule.zero_terminal_snr,
    )
    if schedule.zero_terminal_snr and schedule.prediction == "epsilon":
        raise SdjaxError("--zero-terminal-snr: pure noise says nothing of eps, give --prediction v with it")
    config = replace(sd.config, schedule=schedule, size=picture_size(options.size, sd.config, sd.config.multiple))
    multiple = bucket_multiple(config)
    sd = replace(sd, config=config)
    captions = reads_captions(options.condition, config) and options.condition == "text"
    source = open_pictures(options, config.size, multiple, kind.column, captions)
    with prefixed("model: "):
        sd = conditioned(sd, options.condition, source, options.caption_dropout > 0)
    config = sd.config
    kept, held_out = hold_out(options.validation, options.seed, source, options.data)
    other = None
    if options.validation and not any(map(len, held_out)):
        others = replace(options, data=Path(options.validation), crop="center", flip=False, views=1)
        try:
            other = open_pictures(others, config.size, multiple, kind.column, captions)
            other.beside = source.beside and replace(source.beside, source=other)
        except SdjaxError as error:
            raise SdjaxError(re.sub("^data ", "validation ", str(error))) from None
    null = text_null(sd) if reads_captions(options.condition, config) else None
    loss_fn = diffusion_loss(
        config,
        conditioner(config, options.condition, null),
        options.dtype,
        options.remat,
        options.caption_dropout,
        options.min_snr_gamma,
        options.logit_normal,
        options.noise_offset,
    )
    params = starting_params(sd, options.condition, options.seed)
    if options.dry_run:
        return dry_run(options, params, loss_fn, batch_shapes(config, options.examples, options.condition))

    cache = options.out / "cache"
    table = Table(sd, source, cache, options.views, options.condition)
    filled = [group for group, rows in enumerate(kept) if len(rows)]
    order, mine = Order([kept[group] for group in filled], options.examples, options.seed), local_part(options.examples)

    def choose(step: int) -> Chosen:
        chosen = order(step)
        return chosen._replace(group=filled[chosen.group])

    def batch(step: int) -> Batch:
        index = np.arange(options.examples, dtype=np.uint32) + np.uint32(step * options.examples % 2**32)
        return table.batch(choose(step).part(mine), index[mine])

    validation = list(validation_batches(options.batch_size, table, held_out))
    if other:
        groups = [np.asarray(rows) for rows in other.groups]
        validation = list(validation_batches(options.batch_size, Table(sd, other, cache, 1, options.condition), groups))

    asked = samples(sd, table, source, options)

    def on_sample(step, params, run):
        trained = merged(sd, options.condition, params)
        prompt = asked(params)
        many = int(options.sample_prompts) if prompt is None else 1
        settings = {"steps": 20, "num_images": many, "seed": options.seed, "syntax": "plain"}  # as captions are encoded
        pictures = sdjax.txt2img(trained, prompt, **settings)
        text = samples_text(trained.config, prompt, settings, pictures[0].size, step)
        run.save_sheet(step, pictures, text, prompt if isinstance(prompt, list) else None)

    name_batch = lambda step: [source.files[i] for i in choose(step).rows]
    params = fit(options, params, loss_fn, lambda start: read_ahead(batch, start), on_sample, name_batch, validation)
    export(options, merged(sd, options.condition, params))


def samples_text(config, prompt, settings: dict, size: tuple[int, int], step: int) -> str:
    """Returns the parameters text of a sheet of samples: its first picture's, with all captions and the step."""
    captions = prompt if isinstance(prompt, list) else [""]
    settings = settings | {"prompt": captions[0], "sampler": "ddim", "guidance_scale": config.guidance_scale}
    more = {"Prompts": tuple(captions) if len(captions) > 1 else None, "Training step": step}
    return describe(settings, settings["seed"], size, config.name, **more)


def samples(sd, table: Table, source: Pictures, options: Options) -> Callable:
    """Returns a function of the trained parameters that gives what sample grids are asked for.

    That is captions, a Cond, or None for a model that is conditioned on nothing.
    """
    if not options.sample_prompts.isdecimal():
        prompts = read_prompts(options.sample_prompts)
        return lambda params: prompts
    many = int(options.sample_prompts)
    if options.condition == "text":
        texts = source.texts[:: max(1, len(source) // many)][:many]
        return lambda params: [*texts]
    if options.condition == "none" or not options.sample_every:
        return lambda params: None
    rows = np.array([row for row in source.groups[0] if row not in source.known])
    rows = rows[:: max(1, len(rows) // many)][:many]
    batch = table.batch(Chosen(rows, np.zeros(len(rows), int), 0), rows.astype(np.uint32))
    made = conditioner(sd.config, options.condition, batch.context if batch.context is None else batch.context[0])
    kept, key = np.zeros(len(rows), bool), jax.random.key(0)
    return lambda params: made(params, batch, kept, key)[1]
