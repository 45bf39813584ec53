"""Trains the UNet: noise is added to latents and the network regresses it, text tower and VAE frozen.

    python train/train_diffusion.py --data DIR --model FOLDER --out RUN --steps 10000
"""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import cli
from sdjax.cache import cached_latents, cached_states
from sdjax.data import Order, read_ahead
from sdjax.errors import SdjaxError
from sdjax.loop import TrainOptions, export, fit, open_pictures, start_model
from sdjax.loss import drop_captions, noise_batch, posterior_sample
from sdjax.model import precise
from sdjax.nn.unet import UNet
from sdjax.parallel import local_part
from sdjax.schedule import make_schedule
from sdjax.types import Batch


@dataclass(frozen=True)
class Options(TrainOptions):
    prediction: str | None = None
    """What the network regresses: epsilon or v; the model's own when not given."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
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
    views: int = 1
    """How many crops and flips of each picture are encoded beforehand, where --crop or --flip make them differ."""
    sample_prompts: int = 16
    """Captions of the data that sample grids draw."""

    def __post_init__(self):
        super().__post_init__()
        if self.prediction not in (None, "epsilon", "v"):
            raise SdjaxError(f"--prediction {self.prediction}: expected epsilon or v")
        if not 0 <= self.caption_dropout <= 1:
            raise SdjaxError(f"--caption-dropout {self.caption_dropout}: expected a number in [0, 1]")
        if self.min_snr_gamma is not None and not 0 < self.min_snr_gamma < float("inf"):
            raise SdjaxError(f"--min-snr-gamma {self.min_snr_gamma}: expected a positive number")
        if self.logit_normal is not None and not (all(map(math.isfinite, self.logit_normal))
                                                  and self.logit_normal[1] > 0):
            raise SdjaxError(f"--logit-normal {self.logit_normal}: expected a mean and a positive spread")
        if not 0 <= self.noise_offset < float("inf"):
            raise SdjaxError(f"--noise-offset {self.noise_offset}: expected a number from 0 on")
        if self.dtype not in ("float32", "bfloat16"):
            raise SdjaxError(f"--dtype {self.dtype}: expected float32 or bfloat16")
        if self.views < 1:
            raise SdjaxError(f"--views {self.views}: expected at least 1")
        if self.sample_prompts < 1:
            raise SdjaxError(f"--sample-prompts {self.sample_prompts}: expected at least 1")


def main(options: Options) -> None:
    """Train the UNet of a latent diffusion model on a folder of captioned pictures."""
    sd = start_model(options)
    schedule = sd.config.schedule
    schedule = replace(schedule, prediction=options.prediction or schedule.prediction,
                       zero_terminal_snr=options.zero_terminal_snr or schedule.zero_terminal_snr)
    if schedule.zero_terminal_snr and schedule.prediction == "epsilon":
        raise SdjaxError("--zero-terminal-snr: pure noise says nothing of eps, give --prediction v with it")
    sd = replace(sd, config=replace(sd.config, schedule=schedule))
    config = sd.config
    unet = UNet(config.unet, jnp.dtype(options.dtype), options.remat)
    source = open_pictures(options, config.size, config.vae.factor * config.unet.factor)
    folder = options.out / "cache"
    latents = cached_latents(sd, source, folder, options.views)
    states, caption_of = cached_states(sd, source.texts, folder)
    null = jnp.asarray(sdjax.encode_prompt(sd, [""]).context[0])
    abar = jnp.asarray(make_schedule(config.schedule).alphas_cumprod, jnp.float32)

    def loss_fn(params, batch, key):
        x0 = lambda noise: config.vae.scaling * posterior_sample(batch.moments, noise)
        shape = (*batch.moments.shape[:3], config.vae.latent_channels)
        noised = noise_batch(x0, shape, batch.index, key, abar, config.schedule.prediction, options.min_snr_gamma,
                             options.logit_normal, options.noise_offset)
        context = drop_captions(batch.context.astype(jnp.float32), null, batch.index, key, options.caption_dropout)
        with precise(options.dtype):
            out = unet.apply({"params": params}, noised.x, noised.t, context)
        return noised.weight * jnp.square(out - noised.target).mean((1, 2, 3)), {}

    order, mine = Order(source.groups, options.examples, options.seed), local_part(options.examples)

    def batch(step):
        moments, rows = latents(order(step).part(mine))
        index = np.arange(options.examples, dtype=np.uint32) + np.uint32(step * options.examples % 2**32)
        return Batch(moments, states[caption_of[rows]], index[mine])

    prompts = [source.texts[i] for i in range(0, len(source), max(1, len(source) // options.sample_prompts))]

    def on_sample(step, params, run):
        trained = replace(sd, params=sd.params | {"unet": params})
        pictures = sdjax.txt2img(trained, prompts[: options.sample_prompts], steps=20, guidance_scale=4.0,
                                 seed=options.seed)
        run.save_sheet(step, pictures)

    name_batch = lambda step: [source.files[i] for i in order(step).rows]
    params = fit(options, sd.params["unet"], loss_fn, lambda start: read_ahead(batch, start), on_sample, name_batch)
    export(options, replace(sd, params=sd.params | {"unet": params}))


if __name__ == "__main__":
    cli.run(main, Options)
