"""The loop that every training script runs: restore, step, log, sample, checkpoint."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np

from sdjax.checkpoint import Run
from sdjax.cli import check_folder
from sdjax.data import Pictures, open_data
from sdjax.errors import SdjaxError
from sdjax.model import StableDiffusion, create, save
from sdjax.parallel import check_batch_size, is_primary, local_part, make_layout, start_processes
from sdjax.train_options import TrainOptions
from sdjax.train_state import LossFn, make_state, make_train_step, trained_params
from sdjax.types import Params


def start_model(options: TrainOptions, tokenizer: bool = True) -> StableDiffusion:
    """Joins the job's processes and gives the model that --model names, after what is cheap to refuse.

    A preset has no tokenizer.
    """
    start_processes(options.coordinator, options.num_processes, options.process_id, options.patience)
    check_folder(options.out)
    check_batch_size(options.batch_size)
    export = options.out / "export"
    if export.exists() and not (export / "model_index.json").is_file():
        raise SdjaxError(f"--out {options.out}: {export} exists and is not a model folder; move it away")
    try:
        sd = create(options.model, seed=options.seed)
    except SdjaxError as error:
        raise SdjaxError(f"--model: {error}") from None
    if tokenizer and sd.tokenizer is None:
        raise SdjaxError(f"--model {options.model}: has no tokenizer; start from the export of train/train_clip.py")
    return sd


def open_pictures(options: TrainOptions, size: int, multiple: int | None = None) -> Pictures:
    """The pictures that --data names, `size` pixels a side; with --buckets of sides that are multiples of `multiple`
    (None: squares only)."""
    if options.buckets and multiple is None:
        raise SdjaxError("--buckets: this model takes squares only")
    return open_data(options.data, size, options.max_bad, options.out, options.crop, options.flip,
                     multiple if options.buckets else None, options.seed, jax.process_index())


def fit(options: TrainOptions, params: Params | Callable[[], Params], loss_fn: LossFn,
        stream: Callable[[int], Iterator[Any]], on_sample: Callable[[int, Params, Run], None] | None = None,
        name_batch: Callable[[int], Sequence[Any]] | None = None) -> Params:
    """Trains `params` to `options.steps` steps over all devices and returns the weights to export, as numpy arrays.

    params: arrays, or a function that gives them, which is run where they will lie.
    stream(n) yields this process' part (`local_part`) of the batches after n steps, `options.examples` in all, as a
    tree of arrays with the example first. on_sample(step, params, run) draws to RUN/samples/ on process 0.
    name_batch(n) names the examples of the batch after n steps, for the log of a loss that is not finite.
    """
    from tqdm import tqdm

    check_batch_size(options.batch_size)
    layout = make_layout(options.parallel, options.replicas)
    optimizer, schedule = options.make_optimizer()
    train_step = make_train_step(loss_fn, optimizer, options.ema_decay, layout.average, options.accumulate, schedule)
    make = lambda params: make_state(params, optimizer, ema=options.ema_decay > 0)
    local = len(range(options.examples)[local_part(options.examples)])

    def step_fn(state, batch, seed):
        batch, asked = batch
        state, metrics = train_step(state, batch, jax.random.key(seed))
        return state, metrics | {"asked": layout.average(asked.mean())}  # any process asks, all of them know

    with closing(Run(options.out, options, options.keep)) as run, _StopFlag() as stop:
        saved = run.restore(jax.eval_shape(lambda: make(params() if callable(params) else params)))
        state = layout.create(make, params) if saved is None else layout.place(saved)
        start = logged = int(layout.fetch(state.step))
        compiled, seed = layout.step(step_fn, state), np.uint32(options.seed)
        batches = stream(start) if start < options.steps else iter(())

        def settle(step: int, metrics: Any) -> bool:
            """Waits for a step, logs what is due, and says whether the run was asked to stop."""
            nonlocal logged
            metrics = layout.fetch(metrics)
            asked, bad = metrics.pop("asked") > 0, int(metrics.pop("bad"))
            if bad:
                names = list(name_batch(step - 1)) if name_batch else []
                run.log(step, metrics, (step - logged) * options.examples, {"skipped": True, "examples": names})
                tqdm.write(f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}: skipped, "
                           f"nothing was changed; its batch is in metrics.jsonl")
            elif step == options.steps or step % options.log_every == 0:
                run.log(step, metrics, (step - logged) * options.examples)
            else:
                return asked
            logged = step
            if bad >= options.max_bad_steps:
                raise SdjaxError(f"step {step}: the loss or gradient was not finite for {bad} steps in a row "
                                 f"(--max-bad-steps {options.max_bad_steps}); the batches are in metrics.jsonl")
            return asked

        waiting = None
        with tqdm(range(start + 1, options.steps + 1), initial=start, total=options.steps, unit="step",
                  disable=not is_primary()) as bar:
            for step in bar:
                batch = next(batches), np.full(local, stop.asked, np.float32)
                state, metrics = compiled(state, layout.put(batch), seed)
                stopping = settle(*waiting) if waiting else False  # of the step before, while this one runs
                waiting = step, metrics
                last = step == options.steps
                due = last or stopping or step % options.checkpoint_every == 0
                draw = on_sample and options.sample_every and (last or step % options.sample_every == 0)
                if due or draw:
                    stopping |= settle(*waiting)
                    waiting = None
                if due:
                    run.save(step, layout.fetch(state, everywhere=False))
                if stopping:
                    raise SystemExit(0)
                if draw:
                    drawn = layout.fetch(trained_params(state), everywhere=False)
                    if is_primary():
                        on_sample(step, drawn, run)
        return layout.fetch(trained_params(state))


def export(options: TrainOptions, sd: StableDiffusion) -> None:
    """Writes RUN/export/, on process 0."""
    if is_primary():
        save(sd, options.out / "export")
        print(options.out / "export")


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
