"""Compiles a benchmark's parts for a TPU, which is not needed for that, and prints XLA's estimates."""

import time
from importlib.metadata import version

from sdjax.commands.benchmark_options import Options, inputs
from sdjax.devices import tpu
from sdjax.errors import SdjaxError

# ---- the parts as functions to trace, to count FLOPs and to compile for a TPU


def traced(config, options: Options, size: int, part: str) -> tuple:
    """Returns (a traceable function that computes the part, its arguments, of which the parameters are shapes)."""
    import jax
    import jax.numpy as jnp

    import sdjax
    from sdjax.families.table import family_of
    from sdjax.model import functions as model
    from sdjax.networks.table import param_shapes
    from sdjax.tasks import program
    from sdjax.tasks.options import TaskOptions as Arguments
    from sdjax.tasks.plans import plan_of
    from sdjax.tasks.preparing import guide_of
    from sdjax.tasks.request import check
    from sdjax.types import Cond

    dtype = jnp.dtype(options.dtype)
    typed = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
    params = {name: typed(param_shapes(getattr(config, name))) for name in family_of(config).parts}
    given = inputs(config, options, size)
    vector = (given["vector"],) if config.unet.takes_vector else ()
    if part == "unet":
        return (
            lambda params, x, t, context, *vector: model.unet_output(
                params, x, t, context, config.unet, dtype, *vector
            ),
            (params["unet"], given["x"], given["t"], given["context"], *vector),
        )
    if part == "decode":
        return lambda *args: model.vae_pixels(*args, config.vae, dtype), (params["vae"], given["latents"])
    sd = sdjax.StableDiffusion(config, params, lambda prompts, **_: {"input_ids": [[1]] * len(prompts)}, dtype)
    arguments = Arguments(steps=options.steps, num_images=options.batch_size, height=size, width=size)
    request = check(config, "", arguments)
    if vector:  # both sides are encoded before the program
        cond, uncond = (
            Cond(given["context"][::2], vector=vector[0][::2]),
            Cond(given["context"][:1], vector=vector[0][:1]),
        )
        plan = plan_of(sd, arguments)
        sides = cond, uncond, request.seeds, guide_of(config, request, plan), plan
    else:
        sides = program.program_inputs(sd, request)
    return (
        lambda *args: program.image_program(*args, config=config, dtype=dtype, shape=request.shape),
        (params, *sides),
    )


def work_of(config, options: Options, size: int) -> dict[str, float]:
    """Returns the FLOPs of each part, by the model's matrix products and convolutions."""
    from sdjax.devices.cost import flops

    count = {
        part: flops(function, *args)
        for part in ("unet", "decode")
        for function, args in [traced(config, options, size, part)]
    }
    return count | {"image": options.steps * count["unet"] + count["decode"]}  # the text tower's are less than 1%


def aot(options: Options, config, sizes: list[int]) -> None:
    """Compiles the parts for one TPU chip and prints a table of XLA's estimates. SdjaxError: an unknown chip."""
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
            whole = part != "image"  # not "image": XLA counts the body of its loop once
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
