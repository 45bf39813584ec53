"""sdjax beside diffusers, on this machine and in one run: python sample/benchmark.py --model SD15 --sizes 256 512

Each loads the same folder in a process of its own, and they take turns: A B A B ... Printed are medians, the range,
what each holds at most in memory, the share of a matrix product's speed, and how far apart the results are. diffusers
and torch come with the extra `parity`; with `--peer none` sdjax runs alone.

`--aot-tpu v5e` compiles for a TPU that need not be there (extra `tpu`) and prints what XLA reckons.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from sdjax.commands.command_line import run
from sdjax.devices import tpu
from sdjax.errors import SdjaxError

PARTS, PROMPT = ("unet", "decode", "image"), "a red apple"


@dataclass(frozen=True)
class Options:
    model: str = "SD15"
    """A preset (SD15, SD21, ...) with random parameters, a diffusers folder, or emoji."""
    sizes: tuple[int, ...] = ()
    """Pixels a side; the model's own if left out."""
    batch_size: int = 1
    """Pictures at once; the UNet is called with twice as many, as guidance needs."""
    steps: int = 20
    """Of a whole image, ddim."""
    parts: tuple[str, ...] = PARTS
    """What is measured: unet (sdjax.predict), decode (sdjax.decode), image (sdjax.txt2img)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation; with random parameters theirs too."""
    peer: tuple[Literal["eager", "compile", "graphs", "none"], ...] = ("eager",)
    """diffusers as it is, through torch.compile, through torch.compile with CUDA graphs, or not at all."""
    runs: int = 5
    """Turns that each takes after a first one, which compiles."""
    aot_tpu: str | None = None
    """v5e, v5p or v6e: only compile, for one such chip."""
    cache: bool = False
    """Take compiled programs from where other scripts keep them; then compile times are not those of a first run."""


# ---- the two sides: (part, pixels a side) -> a function that computes it and gives numpy back


def inputs(config, options: Options, size: int) -> dict[str, np.ndarray]:
    """The same for both."""
    batch, side = options.batch_size, size // config.vae.factor
    draw = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return {
        "latents": draw(0, batch, side, side, config.vae.latent_channels),
        "x": draw(1, 2 * batch, side, side, config.unet.in_channels),
        "t": np.full(2 * batch, 500.0, np.float32),
        "context": draw(2, 2 * batch, config.text.length, config.unet.context_dim),
    }


def ours(folder: str, options: Options) -> Callable:
    import jax

    import sdjax
    from sdjax.devices.host import return_memory
    from sdjax.types import Cond

    return_memory()
    sd = sdjax.load(folder, dtype=options.dtype)
    sd = replace(sd, params=jax.tree.map(jax.device_put, sd.params))

    def calls(part: str, size: int) -> Callable:
        given = jax.tree.map(jax.device_put, inputs(sd.config, options, size))
        function = {
            "unet": lambda: sdjax.predict(sd, given["x"], given["t"], Cond(given["context"])),
            "decode": lambda: sdjax.decode(sd, given["latents"]),
            "image": lambda: sdjax.txt2img(
                sd,
                [PROMPT] * options.batch_size,
                steps=options.steps,
                output="pixels",
                latents=given["latents"],
                height=size,
                width=size,
            ),
        }[part]
        return lambda: np.asarray(function())

    return calls


def theirs(folder: str, options: Options) -> Callable:
    import diffusers
    import torch
    import transformers

    from sdjax.weights.folder_json import read_config

    config, dtype = read_config(folder), getattr(torch, options.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.simplefilter("ignore", FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error(), library.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None).to(device)
    pipe.set_progress_bar_config(disable=True)
    if "eager" not in options.peer:
        mode = "reduce-overhead" if "graphs" in options.peer else "default"
        pipe.unet.compile(mode=mode), pipe.vae.decoder.compile(mode=mode)

    def calls(part: str, size: int) -> Callable:
        given = inputs(config, options, size)
        given = {name: torch.from_numpy(value).to(device, dtype) for name, value in given.items()}
        latents, x = (given[name].permute(0, 3, 1, 2).contiguous() for name in ("latents", "x"))
        nhwc = lambda pixels: pixels.float().permute(0, 2, 3, 1).cpu().numpy()
        call = {
            "unet": lambda: nhwc(pipe.unet(x, given["t"], given["context"]).sample),
            "decode": lambda: nhwc(pipe.vae.decode(latents / config.vae.scaling).sample),
            "image": lambda: (
                2
                * pipe(
                    [PROMPT] * options.batch_size,
                    num_inference_steps=options.steps,
                    latents=latents,
                    height=size,
                    width=size,
                    output_type="np",
                ).images
                - 1
            ),
        }[part]
        return torch.no_grad()(call)

    return calls


def write_random(name: str, dtype: str, folder: str) -> None:
    """A preset with random parameters, none of them 0, as a diffusers folder."""
    import jax

    import sdjax
    from sdjax.families.table import NAMED
    from sdjax.model.load import bundled_tokenizer
    from sdjax.networks.table import param_shapes

    config, noise = NAMED[name], np.random.default_rng(0).normal(size=2**20).astype(np.float32)

    def draw(leaf):  # drawing a thousand million numbers would take longer than all the rest
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return (np.resize(noise * np.float32(scale), leaf.shape) + np.float32(len(leaf.shape) == 1)).astype(dtype)

    params = {part: jax.tree.map(draw, param_shapes(getattr(config, part))) for part in ("text", "unet", "vae")}
    sdjax.save(sdjax.StableDiffusion(config, params, bundled_tokenizer(config.text)), folder)


# ---- processes that take turns


def serve(pipe, make: Callable, *arguments) -> None:
    """A worker: answers (part, size) with (seconds, bytes held at most, result)."""
    try:
        begin, calls = time.perf_counter(), {}
        side = make(*arguments)
        pipe.send((time.perf_counter() - begin, peak_memory(make), None))
        while True:
            asked = pipe.recv()
            calls = calls if asked in calls else {asked: side(*asked)}
            forget_peak()
            begin = time.perf_counter()
            result = calls[asked]()
            pipe.send((time.perf_counter() - begin, peak_memory(make), result))
    except EOFError:  # no more questions
        return
    except Exception as error:  # so that the other side says it instead of waiting
        pipe.send(error if isinstance(error, SdjaxError) else SdjaxError(f"{make.__name__}: {error!r}"))


class Worker:
    def __init__(self, make: Callable, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, make, *arguments), daemon=True)
        self.process.start()
        other.close()
        self.loaded = self.answer()

    def answer(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SdjaxError(f"a process ended (status {self.process.exitcode}): out of memory?") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, part: str, size: int):
        self.pipe.send((part, size))
        return self.answer()


def forget_peak() -> None:
    """On Linux the highest memory use can be set back to the present one."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(make: Callable) -> float:
    """Bytes: the accelerator's where there is one, else the process'."""
    if make is ours and (stats := sys.modules["jax"].local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"]
    if make is theirs and (cuda := sys.modules["torch"].cuda).is_available():
        return cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0.0)


# ---- what they compute, traced: for counting, and for compiling elsewhere


def traced(config, options: Options, size: int, part: str) -> tuple:
    """(function, shapes of its arguments)."""
    import jax
    import jax.numpy as jnp

    import sdjax
    from sdjax.model import functions as model
    from sdjax.networks.table import param_shapes
    from sdjax.tasks import program
    from sdjax.tasks.options import TaskOptions as Arguments
    from sdjax.tasks.request import check

    dtype = jnp.dtype(options.dtype)
    typed = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
    params = {name: typed(param_shapes(getattr(config, name))) for name in ("text", "unet", "vae")}
    given = inputs(config, options, size)
    if part == "unet":
        return (
            lambda *args: model.unet_output(*args, config.unet, dtype),
            (params["unet"], given["x"], given["t"], given["context"]),
        )
    if part == "decode":
        return lambda *args: model.vae_pixels(*args, config.vae, dtype), (params["vae"], given["latents"])
    sd = sdjax.StableDiffusion(config, params, lambda prompts, **_: {"input_ids": [[1]] * len(prompts)}, dtype)
    arguments = Arguments(steps=options.steps, num_images=options.batch_size, height=size, width=size)
    request = check(config, "", arguments)
    return (
        lambda *args: program.image_program(*args, config=config, dtype=dtype, shape=request.shape),
        (params, *program.program_inputs(sd, request)),
    )


def work_of(config, options: Options, size: int) -> dict[str, float]:
    """FLOPs of the model in each part."""
    from sdjax.devices.cost import flops

    count = {
        part: flops(function, *args)
        for part in ("unet", "decode")
        for function, args in [traced(config, options, size, part)]
    }
    return count | {"image": options.steps * count["unet"] + count["decode"]}  # the text tower's are less than 1%


def aot(options: Options, config, sizes: list[int]) -> None:
    """Compiles the parts for one TPU chip."""
    from sdjax.devices import cost as measure

    if options.aot_tpu not in tpu.CHIPS:
        raise SdjaxError(f"--aot-tpu {options.aot_tpu}: one of {', '.join(tpu.CHIPS)}")
    chip = tpu.CHIPS[options.aot_tpu]
    device = tpu.topology_devices(chip.topology)[0]
    print(
        f"{options.model}, batch {options.batch_size}, {options.dtype}, {options.steps} steps, compiled for one "
        f"{device.device_kind}; jax {version('jax')}"
    )
    row = "{:8s}{:>6s}{:>10s}{:>10s}{:>10s}{:>10s}{:>10s}{:>10s}{:>10s}{:>10s}{:>10s}{:>11s}".format
    print(
        row(
            "part",
            "px",
            "GFLOP",
            "model's",
            "GB, XLA's",
            "renamed",
            "GB moved",
            "GB args",
            "GB temp",
            "ms",
            "Mcycles",
            "compile s",
        ),
        flush=True,
    )
    for size in sizes:
        work = work_of(config, options, size)
        for part in options.parts:
            begin = time.perf_counter()
            function, shapes = traced(config, options, size, part)
            compiled = tpu.compile_for(device, function, *shapes)
            seconds, costs, text = time.perf_counter() - begin, measure.Costs(compiled), compiled.as_text()
            moved = measure.main_memory_traffic(text)
            least = max(costs.flops / measure.peak_flops(device.device_kind), moved / chip.bandwidth)
            whole = part != "image"  # XLA counts a loop's body once
            print(
                row(
                    part,
                    f"{size}",
                    f"{costs.flops / 1e9:.0f}" if whole else "",
                    f"{work[part] / 1e9:.0f}",
                    *(f"{count / 1e9:.2f}" if whole else "" for count in (costs.bytes, measure.renamed(text), moved)),
                    f"{costs.memory['arguments'] / 1e9:.2f}",
                    f"{costs.memory['temporary'] / 1e9:.2f}",
                    f"{1e3 * least:.1f}" if whole else "",
                    f"{measure.cycles(text) / 1e6:.1f}" if whole else "",
                    f"{seconds:.0f}",
                ),
                flush=True,
            )
    print(
        "GFLOP: XLA's count; model's: of matrix products and convolutions; GB, XLA's: read and written by its "
        "operations, in on-chip memory too; renamed: of these, neither read nor written; GB moved: to and from main "
        "memory; ms: at least, by FLOP/s and bytes/s; Mcycles: XLA's estimate, without attention's kernels"
    )


# ---- the table


def main(options: Options) -> None:
    """Measure sdjax beside diffusers."""
    from sdjax.families.table import NAMED
    from sdjax.model.load import find_source
    from sdjax.weights.folder_json import read_config

    if not options.parts or not set(options.parts) <= set(PARTS):
        raise SdjaxError(f"--parts {' '.join(options.parts)}: some of {', '.join(PARTS)}")
    if min(options.runs, options.batch_size, options.steps) < 1:
        raise SdjaxError("--runs, --batch-size and --steps: at least 1")
    if options.model == "EMOJI":
        raise SdjaxError("--model EMOJI: has no tokenizer; take emoji, the bundled model")
    folder = None if options.model in NAMED else str(find_source(options.model)[0])
    config = NAMED[options.model] if folder is None else read_config(folder)
    sizes, multiple = list(options.sizes) or [config.size], config.multiple
    if any(size < 1 or size % multiple for size in sizes):
        raise SdjaxError(f"--sizes {' '.join(map(str, sizes))}: positive multiples of {multiple}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two processes share the device
    if options.aot_tpu:
        return aot(options, config, sizes)
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sdjax-benchmark-"))
            maker = multiprocessing.get_context("spawn").Process(
                target=write_random, args=(options.model, options.dtype, folder)
            )
            maker.start(), maker.join()
            if maker.exitcode:
                raise SdjaxError(f"--model {options.model}: could not be written to {folder}")
        compare(options, config, sizes, folder)


def compare(options: Options, config, sizes: list[int], folder: str) -> None:
    import jax

    from sdjax.devices.cost import matmul_ceiling

    workers = {"sdjax": Worker(ours, folder, options)}
    workers |= {
        f"diffusers {peer}": Worker(theirs, folder, replace(options, peer=(peer,)))
        for peer in options.peer
        if peer != "none"
    }
    kind, ceiling = jax.devices()[0].device_kind, matmul_ceiling(options.dtype)
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", *(("torch", "diffusers") * (len(workers) > 1))))
    print(
        f"{options.model}, batch {options.batch_size}, {options.dtype}, {options.steps} steps; {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f}, {kind}, {ceiling / 1e9:.0f} GFLOP/s in a matrix product; {versions}"
    )
    row = "{:7s}{:>5s}  {:18s}{:>10s}{:>10s}{:>17s}{:>9s}{:>7s}{:>7s}{:>9s}".format
    print(row("part", "px", "", "compile s", "median s", "range", "peak GB", "share", "ratio", "apart"), flush=True)
    for name, worker in workers.items():
        seconds, peak, _ = worker.loaded
        print(row("load", "", name, "", f"{seconds:.2f}", "", f"{peak / 1e9:.2f}", "", "", ""))
    for size in sizes:
        work = work_of(config, options, size)
        for part in options.parts:
            ceiling = max(ceiling, matmul_ceiling(options.dtype))
            first = {name: worker.ask(part, size) for name, worker in workers.items()}
            turns = [
                {name: worker.ask(part, size)[:2] for name, worker in workers.items()} for _ in range(options.runs)
            ]
            for name in workers:
                seconds = [turn[name][0] for turn in turns]
                median, peak = statistics.median(seconds), max(turn[name][1] for turn in turns)
                ratio = statistics.median(turn["sdjax"][0] / turn[name][0] for turn in turns)
                apart = np.abs(first[name][2] - first["sdjax"][2]).max() / np.abs(first[name][2]).max()
                last = ("", "") if name == "sdjax" else (f"{ratio:.2f}", f"{apart:.1e}")
                print(
                    row(
                        part,
                        f"{size}",
                        name,
                        f"{max(0, first[name][0] - median):.1f}",
                        f"{median:.3f}",
                        f"{min(seconds):.3f}-{max(seconds):.3f}",
                        f"{peak / 1e9:.2f}",
                        f"{work[part] / median / ceiling:.0%}",
                        *last,
                    ),
                    flush=True,
                )
    print(
        "compile: what the first call took longer; share: of the speed of a matrix product, by the model's own "
        "FLOPs; ratio: sdjax' time by the other's, median of turns; apart: largest difference by largest value"
    )


if __name__ == "__main__":
    run(main, Options)
