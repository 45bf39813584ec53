"""sdjax beside diffusers, on this machine and in one run: python sample/benchmark.py --model SD15 --sizes 256 512

Each library loads the same folder in a process of its own, and they take turns: A B A B ... The table has medians and
ranges of the times, each one's largest memory use, its share of a matrix product's speed, and the difference of the
results. The extra `parity` installs diffusers and torch; with `--peer none` sdjax runs alone.

`--aot-tpu v5e` compiles for a TPU, which is not needed for that (extra `tpu`), and prints XLA's estimates.
"""

import multiprocessing
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from sdjax.commands.benchmark_options import PARTS, PROMPT, Options, inputs
from sdjax.commands.benchmark_process import Worker
from sdjax.commands.benchmark_tpu import aot, work_of
from sdjax.errors import SdjaxError, log

# ---- the two sides: (part, pixels a side) -> a function that computes the part and returns numpy arrays


GUIDANCE = 7.5  # of both sides; the time does not depend on it, unless it is 1


def ours(folder: str, options: Options) -> Callable:
    """Loads the folder with sdjax. Returns calls(part, size), which returns a function to time."""
    import jax

    import sdjax
    from sdjax.devices.host import return_memory
    from sdjax.types import Cond

    return_memory()
    log.setLevel("ERROR")  # few steps are enough to time, and say so
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
                guidance_scale=GUIDANCE,
                output="pixels",
                latents=given["latents"],
                height=size,
                width=size,
                progress=lambda done, total: None,  # as the command `generate` draws, a step at a time
            ),
        }[part]
        return lambda: np.asarray(function())

    return calls


def theirs(folder: str, options: Options) -> Callable:
    """The same with diffusers."""
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
                    guidance_scale=GUIDANCE,
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
    """Writes a preset with random parameters, none of them 0, as a diffusers folder."""
    import jax

    import sdjax
    from sdjax.families.table import NAMED, family_of
    from sdjax.model.load import bundled_tokenizer
    from sdjax.networks.table import param_shapes

    config, noise = NAMED[name], np.random.default_rng(0).normal(size=2**20).astype(np.float32)

    def draw(leaf):  # drawing 1e9 numbers would take longer than everything else
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return (np.resize(noise * np.float32(scale), leaf.shape) + np.float32(len(leaf.shape) == 1)).astype(dtype)

    params = {part: jax.tree.map(draw, param_shapes(getattr(config, part))) for part in family_of(config).parts}
    sdjax.save(sdjax.StableDiffusion(config, params, bundled_tokenizer(config.text)), folder)


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
    if config.unet.takes_vector:
        raise SdjaxError(f"--model {options.model}: takes more than text, compiled alone, with --aot-tpu")
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
    """Times both sides on the same folder and prints the table."""
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
