"""Training a UNet, or a part of it, on pictures with captions: data, batches, validation and samples.

What is trained is a Part: a tree of parameters and a loss. Everything else of a run is the same for all parts.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sdjax
from sdjax.data.order import Chosen, Order, read_ahead
from sdjax.data.source import Pictures
from sdjax.devices.processes import is_primary, local_part
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.files import read_prompts
from sdjax.model.value import StableDiffusion
from sdjax.tasks.parameters import describe
from sdjax.training.captions import Table, hold_out, validation_batches
from sdjax.training.diffusion import Conditioner, Forward, diffusion_loss, plain
from sdjax.training.diffusion_options import DiffusionOptions
from sdjax.training.loop import Source, dry_run, fit
from sdjax.training.options import picture_size
from sdjax.training.state import LossFn
from sdjax.types import Batch, Params

VIEWS = 4  # views of each picture if it is flipped or cropped at random


class Part(NamedTuple):
    """What a run trains, and what stays."""

    params: Source
    loss: LossFn  # (params, Batch, key, *frozen) -> (losses [B], metrics)
    whole: Callable[[Params], StableDiffusion]  # trained parameters -> the model that draws samples
    frozen: tuple[Params, ...] = ()  # see `fit`
    validation: LossFn | None = None  # the loss of held-out pictures, where it is another


class Prior(NamedTuple):
    """Pictures of what the model knew before, which half of each batch is taken from (arXiv 2208.12242)."""

    source: Pictures
    weight: float  # of their mean loss, which is added to that of the other pictures


def with_views(options: Any) -> Any:
    """Returns the options with a number of views, and says so if all epochs see the same one."""
    if options.views == 1 and options.varied and is_primary():
        print("--views 1: each picture is cropped and flipped once, the same way in all epochs", file=sys.stderr)
    return replace(options, views=options.views or (VIEWS if options.varied else 1))


def as_asked(sd: StableDiffusion, options: DiffusionOptions) -> StableDiffusion:
    """Returns the model with the schedule and the size that the options ask for. SdjaxError: it cannot have them."""
    schedule = sd.config.schedule
    schedule = replace(
        schedule,
        prediction=options.prediction or schedule.prediction,
        zero_terminal_snr=options.zero_terminal_snr or schedule.zero_terminal_snr,
    )
    if schedule.zero_terminal_snr and schedule.prediction == "epsilon":
        raise SdjaxError("zero_terminal_snr: pure noise says nothing of eps, give `prediction` v with it")
    size = picture_size(options.size, sd.config, sd.config.multiple)
    return replace(sd, config=replace(sd.config, schedule=schedule, size=size))


def loss_as_asked(
    options: DiffusionOptions, config: Config, conditioner: Conditioner, forward: Forward = plain
) -> LossFn:
    """Returns the loss that the options ask for; the other arguments are those of `diffusion_loss`."""
    return diffusion_loss(
        config,
        conditioner,
        options.dtype,
        options.remat,
        options.caption_dropout,
        options.min_snr_gamma,
        options.logit_normal,
        options.noise_offset,
        forward,
    )


def train_on_pictures(
    options: DiffusionOptions,
    part: Part,
    source: Pictures,
    reopen: Callable[[Any], Pictures],
    make_table: Callable[[Pictures, Path, int], Table],
    shapes: Batch,
    samples: Callable[[Table], Callable[[Params], dict[str, Any]]],
    prior: Prior | None = None,
) -> Params | None:
    """Trains a part on pictures and returns the weights to export; with options.dry_run prints what it costs.

    reopen: opens the data of changed options, for a folder of held-out pictures.
    make_table: (pictures, the folder of all caches, views) -> their Table.
    shapes: of a batch, see `batch_shapes`.
    samples: returns a function of the trained parameters that gives the arguments of `sdjax.txt2img` for a sheet of
        samples, "prompt" among them.
    """
    kept, held_out = hold_out(options.validation, options.seed, source, options.data)
    other = None
    if options.validation and not any(map(len, held_out)):
        others = replace(options, data=Path(options.validation), crop="center", flip=False, views=1)
        try:
            other = reopen(others)
            other.beside = source.beside and replace(source.beside, source=other)
        except SdjaxError as error:
            raise SdjaxError(re.sub("^data ", "validation ", str(error))) from None
    if options.dry_run:
        dry_run(options, part.params, part.loss, shapes, part.frozen)
        return None

    cache = options.out / "cache"
    table = make_table(source, cache, options.views)
    stream = Stream(options, table, [source.repeated(rows) for rows in kept])
    if prior is not None:
        stream = Stream(options, table, stream.groups, make_table(prior.source, cache, options.views), prior)
    validation = list(validation_batches(options.batch_size, table, held_out))
    if other:
        groups = [np.asarray(rows) for rows in other.groups]
        validation = list(validation_batches(options.batch_size, make_table(other, cache, 1), groups))
    asked = samples(table)

    def on_sample(step, params, run):
        trained, asks = part.whole(params), asked(params)
        prompt = asks.pop("prompt")
        many = int(options.sample_prompts) if prompt is None else 1
        settings = {"steps": 20, "num_images": many, "seed": options.seed, "syntax": "plain"}  # as captions are encoded
        pictures = sdjax.txt2img(trained, prompt, **settings, **asks)
        text = samples_text(trained.config, prompt, settings, pictures[0].size, step)
        run.save_sheet(step, pictures, text, prompt if isinstance(prompt, list) else None)

    ahead = lambda start: read_ahead(stream.batch, start)
    return fit(
        options, part.params, part.loss, ahead, on_sample, stream.names, validation, part.frozen, part.validation
    )


class Stream:
    """The batches of a run, by the number of steps before them.

    groups: the rows of each shape; a row may come several times. With a prior, examples 0, 2, 4 ... of a batch are from
    `table` and 1, 3, 5 ... from `other`, and the weights make its mean loss the sum of two means.
    """

    def __init__(
        self,
        options: DiffusionOptions,
        table: Table,
        groups: list[np.ndarray],
        other: Table | None = None,
        prior: Prior | None = None,
    ):
        self.table, self.other, self.prior, self.groups, self.count = table, other, prior, groups, options.examples
        self.filled = [group for group, rows in enumerate(groups) if len(rows)]
        own = self.count if prior is None else self.count // 2
        self.order = Order([groups[group] for group in self.filled], own, options.seed)
        if prior is not None:
            self.prior_order = Order([prior.source.repeated(prior.source.groups[0])], own, options.seed)

    def choose(self, step: int) -> Chosen:
        chosen = self.order(step)
        return chosen._replace(group=self.filled[chosen.group])

    def batch(self, step: int) -> Batch:
        """Returns this process' part of the batch that follows `step` steps."""
        index = np.arange(self.count, dtype=np.uint32) + np.uint32(step * self.count % 2**32)
        mine = local_part(self.count)
        if self.prior is None:
            return self.table.batch(self.choose(step).part(mine), index[mine])
        numbers = np.arange(self.count)[mine]
        sides = []
        for k, (table, chosen) in enumerate(((self.table, self.choose(step)), (self.other, self.prior_order(step)))):
            own = numbers[numbers % 2 == k]
            weights = np.full(len(own), (2.0, 2.0 * self.prior.weight)[k], np.float32)
            sides.append(table.batch(chosen.part(own // 2), index[own])._replace(weight=weights))
        places = np.argsort(np.concatenate([numbers[numbers % 2 == k] for k in (0, 1)]))
        joined = lambda a, b: None if a is None else np.concatenate([a, b])[places]
        return Batch(*map(joined, *sides))

    def names(self, step: int) -> list[str]:
        """Returns the names of the files of a batch."""
        found = [self.table.files[i] for i in self.choose(step).rows]
        return found if self.prior is None else found + [self.other.files[i] for i in self.prior_order(step).rows]


def samples_text(config, prompt, settings: dict, size: tuple[int, int], step: int) -> str:
    """Returns the parameters text of a sheet of samples: its first picture's, with all captions and the step."""
    captions = prompt if isinstance(prompt, list) else [""]
    settings = settings | {"prompt": captions[0], "sampler": "ddim", "guidance_scale": config.guidance_scale}
    more = {"Prompts": tuple(captions) if len(captions) > 1 else None, "Training step": step}
    return describe(settings, settings["seed"], size, config.name, **more)


def sample_prompts(options: DiffusionOptions, source: Pictures) -> list[str]:
    """Returns the prompts that samples of a model of text are drawn of: a file's lines, or captions of the data."""
    if not options.sample_prompts.isdecimal():
        return read_prompts(options.sample_prompts)
    many = int(options.sample_prompts)
    return [*source.texts[:: max(1, len(source) // many)][:many]]
