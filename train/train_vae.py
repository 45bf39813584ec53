"""Trains the VAE: L1 or L2 reconstruction plus KL, the latent a sample of the posterior (arXiv 2112.10752)."""

from dataclasses import dataclass, replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import cli
from sdjax.data import batches, open_folder, to_pixels
from sdjax.image import contact_sheet, pixels_to_pil
from sdjax.loop import TrainOptions, fit, start_model
from sdjax.loss import gaussian_kl, posterior_sample, reconstruction
from sdjax.model import vae_posterior
from sdjax.nn.vae import VAE
from sdjax.parallel import example_keys


@dataclass(frozen=True)
class Options(TrainOptions):
    loss: str = "l1"
    """Reconstruction loss: l1 or l2."""
    kl_weight: float = 1e-6
    """Weight of the KL term, summed over a latent, beside the reconstruction's sum over a picture."""


def main(options: Options) -> None:
    """Train the VAE of a latent diffusion model on a folder of pictures."""
    sd = start_model(options)
    config = sd.config
    vae = VAE(config.vae)
    source = open_folder(options.data, config.size)
    values = config.size * config.size * 3

    def collate(items):
        return {"pixels": to_pixels(np.stack([item["pixels"] for item in items])),
                "index": np.array([item["index"] for item in items], np.int32)}

    def loss_fn(params, batch, key):
        mean, logvar = vae.apply({"params": params}, batch["pixels"], method="encode")
        noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(example_keys(key, batch["index"]))
        latents = posterior_sample(jnp.concatenate([mean, logvar], -1), noise)
        decoded = vae.apply({"params": params}, latents, method="decode")
        error = reconstruction(batch["pixels"], decoded, options.loss)
        kl = gaussian_kl(mean, logvar)
        mse = jnp.square(decoded - batch["pixels"]).mean()
        metrics = {"reconstruction": error.mean(), "kl": kl.mean(), "psnr": 10 * jnp.log10(4 / mse),
                   "latent_std": mean.std()}
        return error + options.kl_weight * kl / values, metrics

    shown = to_pixels(np.stack([source[i]["pixels"] for i in range(0, len(source), max(1, len(source) // 16))[:16]]))
    rebuild = jax.jit(lambda params: vae.apply({"params": params}, shown))

    def on_sample(step, params, run):
        pictures = pixels_to_pil(np.concatenate([shown, np.asarray(rebuild(params))]))
        (run.folder / "samples").mkdir(exist_ok=True)
        contact_sheet(pictures).save(run.folder / "samples" / f"{step}.png")

    stream = lambda start: batches(source, options.batch_size, options.seed, start, collate)
    params = fit(options, sd.params["vae"], loss_fn, stream, on_sample)

    means = [vae_posterior(params, batch["pixels"], config.vae)[0] for batch in islice(stream(0), 20)]
    scaling = round(float(1 / np.std(np.concatenate(means))), 5)  # arXiv 2112.10752, appendix G: unit variance
    sd = replace(sd, config=replace(config, vae=replace(config.vae, scaling=scaling)),
                 params=sd.params | {"vae": jax.tree.map(np.asarray, params)})
    sdjax.save(sd, options.out / "export")
    print(f"{options.out / 'export'}: scaling {scaling}")


if __name__ == "__main__":
    cli.run(main, Options)
