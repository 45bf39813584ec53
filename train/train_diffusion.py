"""Trains the UNet: noise is added to latents and the network regresses it, text tower and VAE frozen.

    python train/train_diffusion.py --data DIR --model FOLDER --out RUN --steps 10000
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import cli
from sdjax.cache import cached_latents, cached_states
from sdjax.data import batches, open_folder
from sdjax.errors import SdjaxError
from sdjax.loop import TrainOptions, fit, start_model
from sdjax.loss import drop_captions, noise_batch, posterior_sample
from sdjax.nn.unet import UNet
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
    sample_prompts: int = 16
    """Captions of the data that sample grids draw."""


def main(options: Options) -> None:
    """Train the UNet of a latent diffusion model on a folder of captioned pictures."""
    if options.prediction not in (None, "epsilon", "v"):
        raise SdjaxError(f"--prediction {options.prediction}: expected epsilon or v")
    if not 0 <= options.caption_dropout <= 1:
        raise SdjaxError(f"--caption-dropout {options.caption_dropout}: expected a number in [0, 1]")
    if options.min_snr_gamma is not None and not options.min_snr_gamma > 0:
        raise SdjaxError(f"--min-snr-gamma {options.min_snr_gamma}: expected a positive number")
    if options.logit_normal is not None and not (all(map(math.isfinite, options.logit_normal))
                                                 and options.logit_normal[1] > 0):
        raise SdjaxError(f"--logit-normal {options.logit_normal}: expected a mean and a positive spread")
    if options.sample_prompts < 1:
        raise SdjaxError(f"--sample-prompts {options.sample_prompts}: expected at least 1")
    sd = start_model(options)
    if options.prediction:
        schedule = replace(sd.config.schedule, prediction=options.prediction)
        sd = replace(sd, config=replace(sd.config, schedule=schedule))
    config = sd.config
    unet = UNet(config.unet)
    source = open_folder(options.data, config.size)
    folder = options.out / "cache"
    moments = cached_latents(sd, source, folder)
    states, caption_of = cached_states(sd, source.texts, folder)
    null = jnp.asarray(sdjax.encode_prompt(sd, [""]).context[0])
    abar = jnp.asarray(make_schedule(config.schedule).alphas_cumprod, jnp.float32)

    def loss_fn(params, batch, key):
        x0 = lambda noise: config.vae.scaling * posterior_sample(batch.moments, noise)
        shape = (*batch.moments.shape[:3], config.vae.latent_channels)
        noised = noise_batch(x0, shape, batch.index, key, abar, config.schedule.prediction, options.min_snr_gamma,
                             options.logit_normal)
        context = drop_captions(batch.context.astype(jnp.float32), null, batch.index, key, options.caption_dropout)
        out = unet.apply({"params": params}, noised.x, noised.t, context)
        return noised.weight * jnp.square(out - noised.target).mean((1, 2, 3)), {}

    def stream(start):
        for step, chosen in enumerate(batches(range(len(source)), options.batch_size, options.seed, start), start):
            index = step * options.batch_size + np.arange(options.batch_size)
            yield Batch(moments[chosen], states[caption_of[chosen]], index.astype(np.int32))

    prompts = [source.texts[i] for i in range(0, len(source), max(1, len(source) // options.sample_prompts))]

    def on_sample(step, params, run):
        trained = replace(sd, params=sd.params | {"unet": params})
        pictures = sdjax.txt2img(trained, prompts[: options.sample_prompts], steps=20, guidance_scale=4.0,
                                 seed=options.seed)
        run.save_sheet(step, pictures)

    params = fit(options, sd.params["unet"], loss_fn, stream, on_sample)
    sdjax.save(replace(sd, params=sd.params | {"unet": jax.tree.map(np.asarray, params)}), options.out / "export")
    print(options.out / "export")


if __name__ == "__main__":
    cli.run(main, Options)
