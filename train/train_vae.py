"""Trains the VAE: L1 or L2 reconstruction plus KL, the latent a sample of the posterior (arXiv 2112.10752).

With --discriminator-weight a patch discriminator is trained beside it, in the same step: the VAE's loss sees the
discriminator's parameters as constants, and the discriminator's loss sees the VAE's pictures as constants.
"""

from dataclasses import dataclass, replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import cli
from sdjax.data import batches, to_pixels
from sdjax.errors import SdjaxError
from sdjax.image import pixels_to_pil
from sdjax.loop import TrainOptions, fit, open_pictures, start_model
from sdjax.loss import gaussian_kl, hinge, posterior_sample, reconstruction
from sdjax.model import vae_posterior
from sdjax.nn.discriminator import PatchDiscriminator
from sdjax.nn.vae import VAE
from sdjax.parallel import example_keys


@dataclass(frozen=True)
class Options(TrainOptions):
    loss: str = "l1"
    """Reconstruction loss: l1 or l2."""
    kl_weight: float = 1e-6
    """Weight of the KL term, summed over a latent, beside the reconstruction's sum over a picture."""
    discriminator_weight: float = 0.0
    """Weight of the adversarial term (hinge, patches); 0 is none. Start from a VAE that reconstructs already."""
    freeze_encoder: bool = False
    """Train the decoder alone: latents, and whatever was trained on them, stay what they are."""


def main(options: Options) -> None:
    """Train the VAE of a latent diffusion model on a folder of pictures."""
    if options.loss not in ("l1", "l2"):
        raise SdjaxError(f"--loss {options.loss}: expected l1 or l2")
    if not 0 <= options.discriminator_weight < float("inf"):
        raise SdjaxError(f"--discriminator-weight {options.discriminator_weight}: expected a number from 0 on")
    sd = start_model(options)
    config = sd.config
    vae, critic = VAE(config.vae), PatchDiscriminator()
    source = open_pictures(options, config.size, config.vae.factor)
    values = config.size * config.size * 3

    def collate(items):
        return {"pixels": to_pixels(np.stack([item["pixels"] for item in items])),
                "index": np.array([item["index"] for item in items], np.int32)}

    def loss_fn(params, batch, key):
        weights, constant = {"params": fixed | params["vae"]}, jax.lax.stop_gradient
        mean, logvar = vae.apply(weights, batch["pixels"], method="encode")
        noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(example_keys(key, batch["index"]))
        decoded = vae.apply(weights, posterior_sample(jnp.concatenate([mean, logvar], -1), noise), method="decode")
        error, kl = reconstruction(batch["pixels"], decoded, options.loss), gaussian_kl(mean, logvar)
        mse = jnp.square(decoded - batch["pixels"]).mean()
        metrics = {"reconstruction": error.mean(), "kl": kl.mean(), "psnr": 10 * jnp.log10(4 / mse)}
        losses = error + options.kl_weight * kl / values
        if options.discriminator_weight:
            judge = lambda judged, pixels: critic.apply({"params": judged}, pixels)
            realism = judge(constant(params["critic"]), decoded).mean((1, 2))
            critic_loss = hinge(judge(params["critic"], batch["pixels"]), judge(params["critic"], constant(decoded)))
            losses += critic_loss - options.discriminator_weight * realism
            metrics |= {"realism": realism.mean(), "critic_loss": critic_loss.mean()}
        return losses, metrics

    parts = dict(sd.params["vae"])
    fixed = {"encoder": parts.pop("encoder")} if options.freeze_encoder else {}
    trainable = {"vae": parts}
    if options.discriminator_weight:
        picture = jnp.zeros((1, config.size, config.size, 3))
        trainable["critic"] = critic.init(jax.random.key(options.seed), picture)["params"]

    shown = to_pixels(np.stack([source[i]["pixels"] for i in range(0, len(source), max(1, len(source) // 16))[:16]]))
    rebuild = jax.jit(lambda params: vae.apply({"params": fixed | params["vae"]}, shown))

    def on_sample(step, params, run):
        pictures = pixels_to_pil(np.concatenate([shown, np.asarray(rebuild(params))]))
        run.save_sheet(step, pictures)

    stream = lambda start: batches(source, options.examples, options.seed, start, collate)
    trained = fixed | fit(options, trainable, loss_fn, stream, on_sample)["vae"]

    scaling = config.vae.scaling
    if not options.freeze_encoder:  # latents of unit variance: arXiv 2112.10752, appendix G
        means = [vae_posterior(trained, batch["pixels"], config.vae)[0] for batch in islice(stream(0), 20)]
        scaling = round(float(1 / np.std(np.concatenate(means))), 5)
    sd = replace(sd, config=replace(config, vae=replace(config.vae, scaling=scaling)),
                 params=sd.params | {"vae": jax.tree.map(np.asarray, trained)})
    sdjax.save(sd, options.out / "export")
    print(f"{options.out / 'export'}: scaling {scaling}")


if __name__ == "__main__":
    cli.run(main, Options)
