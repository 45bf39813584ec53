"""Times the training step beside diffusers' on torch: the same model, weights, shapes and optimiser, in one run.

    pip install ".[parity]"
    python train/benchmark.py --model EMOJI --batch-size 16

Both steps noise latents, regress the noise (or v, as the model does), clip the gradient, and update AdamW and the EMA.
All parameters are float32. Each library runs on the accelerator that it finds, else on the CPU. First the networks'
outputs are compared, to show that both compute the same.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from sdjax.conditioning.sizes import FEATURES, size_features
from sdjax.devices.cost import flops, matmul_ceiling
from sdjax.devices.layouts import check_batch_size, make_layout
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import NAMED
from sdjax.model.functions import unet_output
from sdjax.model.load import initial_params
from sdjax.networks.table import make_rows
from sdjax.training.diffusion import diffusion_loss, on_text, zero_null
from sdjax.training.loop import build
from sdjax.training.options import TrainOptions, check_channels, picture_size
from sdjax.training.sizes import is_base, view_sizes
from sdjax.types import Batch
from sdjax.weights.convert import to_file_tensors
from sdjax.weights.folder_json import folder_configs


@dataclass(frozen=True)
class Options:
    model: str = "EMOJI"
    """A preset: EMOJI, SD15, SD21, ..."""
    batch_size: int = 16
    size: int | None = None
    """Pixels a side; the model's own when not given."""
    steps: int = 10
    """Steps that are timed, after a few that are not."""
    parallel: str = "pmap"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; in torch by autocast."""
    peer: tuple[Literal["eager", "compile"], ...] = ("eager",)
    """diffusers as it is, or its UNet through torch.compile."""


def main(options: Options) -> None:
    """Time the training step of sdjax and of diffusers."""
    if options.model not in NAMED:
        raise SdjaxError(f"--model {options.model}: expected one of {', '.join(NAMED)}")
    config = NAMED[options.model]
    check_channels(options.model, config)
    config = replace(config, size=picture_size(options.size, config, config.multiple))
    if options.steps < 1:
        raise SdjaxError(f"--steps {options.steps}: expected at least 1")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two share the device
    make_layout(options.parallel)
    check_batch_size(options.batch_size)
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise SdjaxError(f"{error}: install the extra parity") from None
    params = jax.tree.map(np.asarray, jax.jit(initial_params, static_argnums=(0, 1))(config, "unet", np.uint32(0)))
    params = jax.tree.map(lambda leaf: leaf if leaf.any() else np.full_like(leaf, 0.01), params)  # no zero layers
    batch = random_batch(config, options.batch_size)
    unet = torch_unet(diffusers, torch, config, params)
    print(f"outputs differ by {outputs_differ(torch, unet, config, params, batch):.1e} (largest, relative)")
    print("                    first step    each step    pictures/s")
    sides = {"sdjax": lambda: ours(options, config, params, batch)}
    sides |= {
        f"diffusers, {peer}": lambda peer=peer: theirs(diffusers, torch, unet, config, batch, options.dtype, peer)
        for peer in sorted(options.peer, reverse=True)
    }  # eager first: the UNet stays compiled once it is
    for name, make in sides.items():
        first, each, note = time_steps(make, options.steps)
        print(f"{name:<18} {first:9.2f} s  {each:9.3f} s  {options.batch_size / each:12.2f}{note}")


def time_steps(make: Callable, steps: int) -> tuple[float, float, str]:
    """Returns the seconds of the first step, with compilation, the median of the next ones, and a note for the table.

    As in a training loop, the host waits for a step only after it has started the next one.
    make: returns (step, note); step() starts a step and returns a function that waits for it.
    """
    start = time.perf_counter()
    step, note = make()
    wait = step()
    wait()
    first, times = time.perf_counter() - start, []
    wait = step()
    for _ in range(steps + 1):
        start = time.perf_counter()
        wait_next = step()
        wait()
        wait = wait_next
        times.append(time.perf_counter() - start)
    wait()
    each = float(np.median(times[1:]))
    return first, each, note(each)


def random_batch(config: Config, count: int) -> Batch:
    """Returns a batch of random moments and text states."""
    rng, side = np.random.default_rng(0), config.size // config.vae.factor
    moments = rng.normal(size=(count, side, side, 2 * config.vae.latent_channels)).astype(np.float16)
    context = rng.normal(size=(count, config.text.length, config.unet.context_dim)).astype(np.float16)
    batch = Batch(moments, context, np.arange(count, dtype=np.uint32))
    if not is_base(config):
        return batch
    pooled = rng.normal(size=(count, config.text_2.projection)).astype(np.float32)
    features = np.broadcast_to(size_features(own_sizes(config)), (count, 6 * FEATURES))
    return batch._replace(vector=np.concatenate([pooled, features], axis=1))


def own_sizes(config: Config) -> np.ndarray:
    """Returns the six numbers of a picture of the model's own size that is not cropped."""
    return view_sizes((config.size, config.size), (config.size, config.size))


def added(config: Config, put: Callable, vector) -> dict:
    """Returns what diffusers' UNet takes for a batch's vector, by name."""
    if vector is None:
        return {}
    ids = np.broadcast_to(own_sizes(config), (len(vector), 6))
    given = {"text_embeds": put(vector[:, : config.text_2.projection]), "time_ids": put(ids)}
    return {"added_cond_kwargs": given}


def ours(options: Options, config: Config, params, batch: Batch) -> tuple[Callable, Callable]:
    """Returns sdjax's (step, note), see `time_steps`."""
    settings = TrainOptions(Path(), Path(), batch_size=options.batch_size, warmup=0, parallel=options.parallel)
    layout = make_layout(options.parallel)
    make, step = build(settings, diffusion_loss(config, on_text(zero_null(config)), options.dtype), layout)
    seed = np.uint32(0)
    state, placed = layout.create(make, params, seed), layout.put((batch, np.zeros(options.batch_size, np.float32)))
    step = layout.step(step, state)
    work, ceiling = flops(step, state, placed, seed), matmul_ceiling(options.dtype)
    compiled = step.lower(state, placed, seed).compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, placed, seed)
        return partial(jax.block_until_ready, metrics)

    def note(seconds: float) -> str:
        rate = work / seconds
        return f"   {rate / 1e9:,.0f} GFLOP/s a device, {rate / ceiling:.0%} of a matrix product's"

    return run, note


def torch_unet(diffusers, torch, config: Config, params):
    """Returns diffusers' UNet with the same parameters."""
    from safetensors.numpy import save_file

    fields = folder_configs(config)["unet/config.json"]
    unet = diffusers.UNet2DConditionModel.from_config(fields)
    with tempfile.TemporaryDirectory() as folder:
        save_file(to_file_tensors(params, make_rows(config.unet)), Path(folder) / "unet.safetensors")
        from safetensors.torch import load_file

        unet.load_state_dict(load_file(Path(folder) / "unet.safetensors"))
    return unet.to("cuda" if torch.cuda.is_available() else "cpu")


def outputs_differ(torch, unet, config: Config, params, batch: Batch) -> float:
    """Returns the largest difference of the two networks' outputs, divided by the largest value."""
    x, t = batch.moments[:1, ..., :4].astype(np.float32), np.full(1, 500)
    context, vector = batch.context[:1].astype(np.float32), None if batch.vector is None else batch.vector[:1]
    mine = unet_output(params, x, t.astype(np.float32), context, config.unet, vector=vector)
    put = lambda array: torch.tensor(np.asarray(array, np.float32), device=unet.device)
    with torch.no_grad():
        inputs = put(x.transpose(0, 3, 1, 2)), torch.tensor(t, device=unet.device), put(context)
        other = unet(*inputs, **added(config, put, vector)).sample.cpu().numpy().transpose(0, 2, 3, 1)
    return float(np.abs(np.asarray(mine) - other).max() / np.abs(other).max())


def theirs(diffusers, torch, unet, config: Config, batch: Batch, dtype: str, peer: str) -> tuple[Callable, Callable]:
    """Returns diffusers' (step, note), see `time_steps`; the step is that of its examples/text_to_image."""
    from diffusers.training_utils import EMAModel

    prediction = "v_prediction" if config.schedule.prediction == "v" else "epsilon"
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    assert np.allclose(scheduler.alphas_cumprod, make_schedule(config.schedule).alphas_cumprod, rtol=1e-4)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.01)
    ema, device = EMAModel(unet.parameters()), unet.device
    put = lambda array: torch.tensor(np.asarray(array, np.float32), device=device)
    mean, logvar = torch.chunk(put(batch.moments.transpose(0, 3, 1, 2)), 2, dim=1)
    context, more = put(batch.context), added(config, put, batch.vector)
    unet.train()
    if peer == "compile":
        unet.compile()

    def run():
        latents = config.vae.scaling * (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(latents),), device=device)
        x = scheduler.add_noise(latents, noise, t)
        target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            predicted = unet(x, t, context, **more).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        if device.type == "cpu":
            return loss.item
        done = torch.cuda.Event()
        done.record()
        return done.synchronize

    return run, lambda seconds: ""
