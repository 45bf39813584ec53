"""The loop that every training script runs: restore, step, log, sample, checkpoint."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from sdjax.checkpoint import Run
from sdjax.cli import check_folder
from sdjax.errors import SdjaxError
from sdjax.model import StableDiffusion, create
from sdjax.parallel import average, check_batch_size, pmap_step, replicate, shard, unreplicate
from sdjax.train_state import LossFn, TrainState, make_optimizer, make_state, make_train_step
from sdjax.types import Params


@dataclass(frozen=True)
class TrainOptions:
    """What all training scripts share."""

    data: Path
    """Folder of pictures with metadata.jsonl."""
    out: Path
    """The run's folder; the same command again goes on from its newest checkpoint."""
    model: str = "EMOJI"
    """A preset to train from nothing (EMOJI, SD15, ...) or a folder to start from."""
    steps: int = 10_000
    batch_size: int = 64
    """Pictures a step, over all devices."""
    learning_rate: float = 1e-4
    optimizer: str = "adamw"
    """adamw, adafactor, lion or muon (matrices by Muon at the same learning rate, all else by Adam)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: str = "constant"
    """Course of the learning rate after the warm-up: constant, cosine or linear."""
    ema_decay: float = 0.9999
    """0 is no EMA."""
    checkpoint_every: int = 500
    log_every: int = 10
    sample_every: int = 500
    """0 draws no samples."""
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise SdjaxError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        for name in ("warmup", "sample_every"):
            if getattr(self, name) < 0:
                raise SdjaxError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 0")
        if not 0 <= self.seed < 2**32:
            raise SdjaxError(f"--seed {self.seed}: expected an integer in [0, 2**32)")
        if not 0 <= self.ema_decay < 1:
            raise SdjaxError(f"--ema-decay {self.ema_decay}: expected a number in [0, 1)")
        if not 0 < self.learning_rate < float("inf"):
            raise SdjaxError(f"--learning-rate {self.learning_rate}: expected a positive number")
        make_optimizer(self.optimizer, self.learning_rate, self.steps, self.warmup, self.decay)


def start_model(options: TrainOptions, tokenizer: bool = True) -> StableDiffusion:
    """The model that --model names, after what is cheap to refuse. A preset has no tokenizer."""
    check_folder(options.out)
    check_batch_size(options.batch_size)
    try:
        sd = create(options.model, seed=options.seed)
    except SdjaxError as error:
        raise SdjaxError(f"--model: {error}") from None
    if tokenizer and sd.tokenizer is None:
        raise SdjaxError(f"--model {options.model}: has no tokenizer; start from the export of train/train_clip.py")
    return sd


def fit(options: TrainOptions, params: Params, loss_fn: LossFn, stream: Callable[[int], Iterator[Any]],
        on_sample: Callable[[int, Params, Run], None] | None = None) -> Params:
    """Trains `params` for `options.steps` steps under pmap and returns the EMA weights.

    `stream(step)` yields the batches from that step on; `on_sample(step, ema, run)` draws to RUN/samples/.
    """
    from tqdm import tqdm

    check_batch_size(options.batch_size)
    optimizer, schedule = make_optimizer(options.optimizer, options.learning_rate, options.steps, options.warmup,
                                         options.decay)
    with closing(Run(options.out, options)) as run, _StopFlag() as stop:
        state = run.restore(make_state(params, optimizer))
        start = logged = int(state.step)
        step_fn = pmap_step(make_train_step(loss_fn, optimizer, options.ema_decay, average))
        state, key = replicate(state), jax.random.key(options.seed)
        batches = stream(start) if start < options.steps else iter(())
        with tqdm(range(start + 1, options.steps + 1), initial=start, total=options.steps, unit="step") as bar:
            for step in bar:
                last = step == options.steps
                state, metrics = step_fn(state, shard(next(batches)), key)
                if last or step % options.log_every == 0:
                    metrics = unreplicate(metrics) | {"learning_rate": schedule(step - 1)}
                    run.log(step, metrics, (step - logged) * options.batch_size)
                    logged = step
                stopping = stop.asked
                if last or stopping or step % options.checkpoint_every == 0:
                    run.save(step, unreplicate(state))
                if stopping:
                    raise SystemExit(0)
                if on_sample and options.sample_every and (last or step % options.sample_every == 0):
                    on_sample(step, _inference_params(unreplicate(state), options), run)
    return _inference_params(unreplicate(state), options)


def _inference_params(state: TrainState, options: TrainOptions) -> Params:
    return state.ema if options.ema_decay else state.params


class _StopFlag:
    """SIGTERM and SIGINT ask for a checkpoint and an orderly end after the step in progress."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, *_):
        self.asked = True
