"""The loop that every training script runs: restore, step, log, validate, sample, checkpoint."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np

from sdjax.devices.cost import Costs
from sdjax.devices.layouts import Layout, check_batch_size, make_layout
from sdjax.devices.processes import agree, device_errors, is_primary, local_part, meet
from sdjax.errors import SdjaxError, out_of_memory
from sdjax.model.load import save
from sdjax.model.value import StableDiffusion
from sdjax.nn.kernels.backends import here
from sdjax.training.options import TrainOptions
from sdjax.training.report import describe_state, describe_step, utilisation
from sdjax.training.run import Run
from sdjax.training.signals import _StopFlag, status_of
from sdjax.training.state import LossFn, TrainState, make_state, make_train_step, trained_params
from sdjax.types import Params

Source = Params | Callable[[Any], Params]  # arrays, or a function of the seed that returns them


def build(options: TrainOptions, loss_fn: LossFn, layout: Layout) -> tuple[Callable, Callable]:
    """Returns two functions, neither of them compiled: make and step.

    make(params) -> state. step(state, (batch, asked), seed, *frozen) -> (state, metrics). asked is float32 [B], above 0
    in the examples of a process that was asked to stop; its mean, metrics["asked"], tells all processes. frozen: what
    the loss takes besides, see `fit`.
    """
    optimizer, schedule = options.make_optimizer()

    def step(state: TrainState, batch: Any, seed: Any, *frozen: Params) -> tuple[TrainState, dict[str, Any]]:
        loss = lambda params, batch, key: loss_fn(layout.for_loss(params), batch, key, *frozen)
        train_step = make_train_step(loss, optimizer, options.ema_decay, layout.average, options.accumulate, schedule)
        batch, asked = batch
        state, metrics = train_step(state, batch, jax.random.key(seed))
        return state, metrics | {"asked": layout.average(asked.mean())}

    return lambda params: make_state(params, optimizer, ema=options.ema_decay > 0), step


def state_shapes(make: Callable, params: Source) -> TrainState:
    """Returns the shapes and dtypes of the state, as jax.ShapeDtypeStructs."""
    seeded = lambda: make(params(np.uint32(0)))
    return jax.eval_shape(seeded) if callable(params) else jax.eval_shape(make, params)


def dry_run(options: TrainOptions, params: Source, loss_fn: LossFn, batch: Any, frozen: Sequence[Params] = ()) -> None:
    """Prints the options, the state and what the compiled step costs; trains nothing.

    batch: one step's examples, as arrays or `jax.ShapeDtypeStruct`s. frozen: see `fit`; arrays or shapes.
    """
    layout = make_layout(options.parallel, options.replicas)
    make, step = build(options, loss_fn, layout)
    shapes, asked = state_shapes(make, params), jax.ShapeDtypeStruct((options.examples,), np.float32)
    inputs = layout.abstract(shapes), layout.abstract_batch((batch, asked)), np.uint32(0), *map(layout.abstract, frozen)
    with here():
        costs = Costs(layout.step(step, shapes, *frozen).lower(*inputs).compile(), options.accumulate)
    if is_primary():
        print(json.dumps(dataclasses.asdict(options), indent=2, default=str))
        print(*_summary(options, shapes, layout, costs, frozen), sep="\n")


def fit(
    options: TrainOptions,
    params: Source,
    loss_fn: LossFn,
    stream: Callable[[int], Iterator[Any]],
    on_sample: Callable[[int, Params, Run], None] | None = None,
    name_batch: Callable[[int], Sequence[Any]] | None = None,
    validation: Sequence[tuple[Any, Any]] = (),
    frozen: Sequence[Params] = (),
    validation_loss: LossFn | None = None,
) -> Params:
    """Trains over all devices up to step `options.steps`. Returns the weights to export, as numpy arrays.

    A run that has checkpoints in options.out goes on from the newest one.
    params: arrays, or a function of the seed that returns them; the function runs on the devices that keep them.
    loss_fn: see `LossFn` in state.py.
    stream: stream(n) yields the batches that follow n steps: this process' part (`local_part`) of `options.examples`
        examples each, as a tree of arrays whose first axis is the example.
    on_sample: on_sample(step, params, run) draws samples into RUN/samples/, on process 0.
    name_batch: name_batch(n) names the examples of the batch that follows n steps, to log those of a loss that is not
        finite.
    validation: pairs (batch, weights [B]), this process' part of `options.batch_size` examples each. Their weighted
        mean loss, with the weights to export and always the same draws, is logged as validation_loss.
    frozen: parameters that the loss takes besides and that stay: loss_fn(params, batch, key, *frozen). They lie on the
        devices as the state does, in their own dtypes, and no checkpoint holds them.
    validation_loss: in place of `loss_fn` for held-out examples, where training drops what these keep.
    """
    check_batch_size(options.batch_size)
    with device_errors(), here(), closing(Run(options.out, options)) as run, _StopFlag() as stop:
        loop = _Loop(options, params, loss_fn, run, stop, frozen, validation_loss or loss_fn)
        return loop.train(stream, on_sample, name_batch, validation)


class _Loop:
    """One run of `fit`: the compiled functions, and the state that goes from step to step."""

    def __init__(
        self,
        options: TrainOptions,
        params: Source,
        loss_fn: LossFn,
        run: Run,
        stop: "_StopFlag",
        frozen: Sequence[Params],
        validation_loss: LossFn,
    ):
        self.options, self.run, self.stop = options, run, stop
        self.layout = layout = make_layout(options.parallel, options.replicas)
        make, step = build(options, loss_fn, layout)
        self.shapes = state_shapes(make, params)
        saved = run.restore(self.shapes, layout.adopt)
        self.seed = np.uint32(options.seed)
        self.state = layout.create(make, params, self.seed) if saved is None else layout.place(saved)
        self.start = self.logged = int(layout.fetch(self.state.step))
        self.frozen_shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tuple(frozen))
        self.frozen = tuple(map(layout.place, frozen))
        self.step = layout.step(step, self.state, *self.frozen)

        def evaluate(params, batch, seed, *frozen):
            batch, weights = batch
            losses, _ = validation_loss(params, batch, jax.random.key(seed), *frozen)
            return layout.average({"loss": (weights * losses).sum(), "weight": weights.sum()})

        self.evaluate, self.compiled = layout.evaluate(evaluate, *self.frozen), set()

    def train(self, stream, on_sample, name_batch, validation) -> Params:
        from tqdm import tqdm

        options, layout, run = self.options, self.layout, self.run
        self.name_batch = name_batch or (lambda step: [])
        local, waiting = len(range(options.examples)[local_part(options.examples)]), None
        batches = stream(self.start) if self.start < options.steps else iter(())
        every = lambda count, last: count and (last or step % count == 0)
        with tqdm(
            range(self.start + 1, options.steps + 1),
            initial=self.start,
            total=options.steps,
            unit="step",
            disable=not is_primary(),
        ) as self.bar:
            for step in self.bar:
                batch = layout.put((next(batches), np.full(local, self.stop.asked, np.float32)))
                if step == self.start + 1:
                    self.begin(batch)
                self.compile("step", self.step, self.state, batch)
                self.state, metrics = self.step(self.state, batch, self.seed, *self.frozen)
                run.checkpoints.check()
                stopping = self.settle(*waiting) if waiting else False  # waits for the step before, while this one runs
                waiting, last = (step, metrics), step == options.steps
                save = last or stopping or step % options.checkpoint_every == 0
                validate = validation and every(options.validate_every, last)
                draw = on_sample and every(options.sample_every, last)
                if save or validate or draw:
                    jax.block_until_ready(metrics)
                    with run.aside():
                        extra = {"validation_loss": self.validate(validation)} if validate else {}
                    stopping |= self.settle(*waiting, extra)
                    waiting = None
                with run.aside():
                    if draw and not stopping:  # before the checkpoint: a restart from it would not draw
                        drawn = layout.fetch(trained_params(self.state), everywhere=False)
                        on_primary(partial(self.draw, on_sample, step, drawn))
                    if save:
                        self.save(step)
                if stopping:
                    on_primary(partial(run.preempted, step))
                    if is_primary():
                        line = f"stopped after step {step}, saved; the same command goes on"
                        self.bar.write(line, file=sys.stderr)
                    raise SystemExit(status_of(self.stop.name))
        if self.start >= options.steps:
            run.start(self.start)  # nothing was left to do
        self.check_skipped()
        params = trained_params(self.state)
        params = params if isinstance(jax.tree.leaves(params)[0], np.ndarray) else layout.fetch(params)
        on_primary(run.checkpoints.wait)
        return params

    def check_skipped(self) -> None:
        """Ends a run with status 1 that skipped most of its steps: it has trained next to nothing."""
        skipped, steps = self.state.skipped, self.options.steps
        skipped = int(skipped if isinstance(skipped, np.ndarray) else self.layout.fetch(skipped))
        if 2 * skipped > steps:
            on_primary(self.run.checkpoints.wait)
            if is_primary():
                print(
                    f"error: out {self.options.out}: {skipped} of {steps} steps were skipped, since their loss or "
                    "gradient was not finite; nothing is exported, and metrics.jsonl names their batches",
                    file=sys.stderr,
                )
            raise SystemExit(1)

    def draw(self, on_sample, step: int, drawn: Params) -> None:
        """Draws samples. If the device has too little memory for the whole model, it says so and the run goes on."""
        try:
            on_sample(step, drawn, self.run)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            self.bar.write(
                f"step {step}: no samples, the whole model does not fit the device's memory beside the "
                "state; --sample-every 0 does not try",
                file=sys.stderr,
            )

    def save(self, step: int) -> None:
        """Starts to write a checkpoint in the background.

        With the last one of a single process the state moves to the host, so that memory does not hold it twice.
        """
        last = step == self.options.steps and jax.process_count() == 1
        whole = self.layout.fetch(self.state, everywhere=False, free=last)
        on_primary(partial(self.run.save, step, whole, {"examples": step * self.options.examples}))
        if last:
            self.state = whole

    def begin(self, batch: Any) -> None:
        """Compiles the step, prints the summary of the run, and starts the clock."""
        compiled = self.step.lower(
            self.state, batch, self.seed, *self.frozen
        ).compile()  # JAX keeps it for the first call
        self.costs = Costs(compiled, self.options.accumulate)
        if is_primary():
            for line in _summary(self.options, self.shapes, self.layout, self.costs, self.frozen_shapes):
                self.bar.write(line)
        self.run.start(self.start)

    def compile(self, name: str, function: Callable, state: Any, batch: Any) -> None:
        """Compiles `function` for a batch of new shapes on every process before any of them calls it.

        Some compile longer than others, who would wait in the function's collectives. One process alone compiles when
        it calls.
        """
        shapes = name, *(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self.compiled and jax.process_count() > 1:
            function.lower(state, batch, self.seed, *self.frozen).compile()
            meet()
        self.compiled.add(shapes)

    def settle(self, step: int, metrics: Any, extra: dict[str, float] | None = None) -> bool:
        """Waits for a step's metrics, logs them if they are due, and returns whether the run was asked to stop.

        SdjaxError: `options.max_bad_steps` steps in a row were not finite.
        """
        options, run = self.options, self.run
        metrics = self.layout.fetch(metrics) | (extra or {})
        asked, bad = metrics.pop("asked") > 0, int(metrics.pop("bad"))
        notes = {"skipped": True, "examples": list(self.name_batch(step - 1))} if bad else {}
        if bad or extra or step == options.steps or step % options.log_every == 0:
            steps, self.logged = step - self.logged, step
            record = run.log(step, metrics, steps * options.examples, notes)
            self.show(record)
        if bad and is_primary():
            self.bar.write(
                f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}: skipped, "
                "nothing was changed; metrics.jsonl names its batch",
                file=sys.stderr,
            )
        if bad >= options.max_bad_steps:
            on_primary(run.checkpoints.wait)
            raise SdjaxError(
                f"step {step}: the loss or gradient was not finite for {bad} steps in a row "
                f"(`max_bad_steps` {options.max_bad_steps}); metrics.jsonl names their batches"
            )
        return asked

    def show(self, record: dict[str, Any]) -> None:
        """Writes the loss and the speed into the progress bar."""
        speed = record["images_per_second"]
        used = utilisation(self.costs.flops, self.options.examples / speed, jax.devices()[0].device_kind)
        used = "" if used is None else f", {used:.0%} of peak"
        self.bar.set_postfix_str(f"loss {record['loss']:.4f}, {speed:.4g} images/s{used}")

    def validate(self, validation: Sequence[tuple[Any, Any]]) -> float:
        """Returns the weighted mean loss of the held out examples."""
        params, sums = trained_params(self.state), []
        for batch in map(self.layout.put, validation):
            self.compile("validation", self.evaluate, params, batch)
            sums.append(self.layout.fetch(self.evaluate(params, batch, self.seed, *self.frozen)))
        return float(sum(s["loss"] for s in sums) / sum(s["weight"] for s in sums))


def _summary(options: TrainOptions, shapes: TrainState, layout: Layout, costs: Costs, frozen: Any = ()) -> list[str]:
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    return [
        *describe_state(shapes, layout, count, jax.process_count(), kind, frozen),
        *describe_step(costs, options.batch_size, options.accumulate, count),
    ]


def export(options: TrainOptions, sd: StableDiffusion) -> None:
    """Writes the model to RUN/export/ and prints that path, on process 0."""

    def write():
        save(sd, options.out / "export")
        print(options.out / "export")

    on_primary(write)


def on_primary(write: Callable[[], Any]) -> None:
    """Calls write() on process 0. If it raises SdjaxError or OSError, all processes raise an error.

    The other processes wait in a collective operation, however long that takes. If they went on to their end instead,
    JAX would wait there for only --patience seconds.
    """
    refusal = None
    if is_primary():
        try:
            write()
        except (SdjaxError, OSError) as error:
            refusal = error
    with device_errors():
        failed = agree(refusal is not None)
    if failed:
        raise refusal or SdjaxError("out: process 0 could not write there and says why")
