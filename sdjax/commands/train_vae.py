"""Trains the VAE with L1 or L2, LPIPS, KL and a patch discriminator; the loss is in sdjax/training/autoencoder.py.

    python train/train_vae.py --data DIR --model FOLDER --out RUN --vgg vgg16.pth --lpips vgg.pth \
        --discriminator-weight 0.5 --discriminator-start 50001

vgg16.pth is torchvision's, vgg.pth holds the heads of LPIPS 0.1. Without them the loss compares pixels alone. The
discriminator is trained only with --discriminator-weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.data.order import Order, read_ahead
from sdjax.data.picture import to_pixels
from sdjax.devices.layouts import make_layout
from sdjax.devices.processes import device_errors, is_primary, local_part
from sdjax.errors import SdjaxError
from sdjax.image.pixels import pixels_to_pil
from sdjax.model.functions import vae_posterior
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.network import VAE
from sdjax.training.autoencoder import Weights, init_critic, vae_loss
from sdjax.training.loop import dry_run, export, fit
from sdjax.training.options import TrainOptions, check_dtype, picture_size
from sdjax.training.start import open_pictures, start_model
from sdjax.types import Params
from sdjax.weights.lpips import read_lpips

SMALLEST = {"discriminator_weight": 24, "vgg": 16}  # least side of pictures in pixels, for the discriminator and VGG


@dataclass(frozen=True)
class Options(TrainOptions):
    loss: str = "l1"
    """Reconstruction loss: l1 or l2."""
    kl_weight: float = 1e-6
    """Weight of the KL term, summed over a latent, beside the reconstruction's sum over a picture."""
    vgg: Path | None = None
    """torchvision's vgg16 weights, for LPIPS; with --lpips."""
    lpips: Path | None = None
    """LPIPS' heads for VGG16, version 0.1."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS beside the reconstruction loss."""
    discriminator_weight: float = 0.0
    """Weight of the adversarial term, balanced against the others by their gradients; 0 is none, CompVis took 0.5."""
    discriminator_start: int = 0
    """Steps before the discriminator counts; CompVis took 50001."""
    freeze_encoder: bool = False
    """Train the decoder alone: latents, and whatever was trained on them, stay what they are."""
    dtype: str = "float32"
    """Of the computation: float32 or bfloat16. Weights, optimiser and EMA are float32."""
    size: int | None = None
    """Pixels a side; the model's own when not given."""

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in ("l1", "l2"):
            raise SdjaxError(f"--loss {self.loss}: expected l1 or l2")
        for name in ("kl_weight", "perceptual_weight", "discriminator_weight", "discriminator_start"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SdjaxError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number from 0 on")
        if (self.vgg is None) != (self.lpips is None):
            raise SdjaxError(f"--{'lpips' if self.vgg else 'vgg'}: is missing, LPIPS needs both files")
        if self.vgg is None and self.perceptual_weight not in (0, 1):  # 1 is the default
            raise SdjaxError(f"--perceptual-weight {self.perceptual_weight}: needs --vgg and --lpips")
        if self.discriminator_start and not self.discriminator_weight:
            raise SdjaxError(f"--discriminator-start {self.discriminator_start}: needs --discriminator-weight")
        check_dtype(self.dtype)


def main(options: Options) -> None:
    """Train the VAE of a latent diffusion model on pictures."""
    sd = start_model(options)
    config, size = sd.config, picture_size(options.size, sd.config, sd.config.vae.factor)
    for name, least in SMALLEST.items():
        if getattr(options, name) and (side := size // 2 if options.buckets else size) < least:
            raise SdjaxError(f"--{name.replace('_', '-')}: needs pictures of {least} pixels a side, they have {side}")
    weights = Weights(
        options.loss,
        options.kl_weight,
        options.perceptual_weight,
        options.discriminator_weight,
        options.discriminator_start,
    )
    vgg = read_lpips(options.vgg, options.lpips) if options.vgg and options.perceptual_weight else None
    if config.vae.codes:
        raise SdjaxError(f"model {options.model}: its first stage has a codebook, which is not trained; take a KL one")
    parts = dict(sd.params["vae"])
    fixed = {"encoder": parts.pop("encoder")} if options.freeze_encoder else {}
    average = make_layout(options.parallel, options.replicas).average
    loss_fn = vae_loss(config.vae, weights, vgg, fixed, average, options.dtype)
    trained = {"vae": parts}
    if options.discriminator_weight:
        trained["critic"] = init_critic(options.seed, size)
    source = open_pictures(options, size, config.vae.factor)
    if options.dry_run:
        shape, count = jax.ShapeDtypeStruct, options.examples
        return dry_run(
            options,
            trained,
            loss_fn,
            {
                "pixels": shape((count, size, size, 3), np.float32),
                "index": shape((count,), np.uint32),
                "step": shape((count,), np.int32),
            },
        )

    order = Order(source.groups, options.examples, options.seed)

    def batch(step: int, part: slice) -> dict[str, np.ndarray]:
        chosen = order(step).part(part)
        views = [
            source.view(row, epoch, chosen.group)["pixels"]
            for row, epoch in zip(chosen.rows.tolist(), chosen.epochs.tolist(), strict=True)
        ]
        index = np.arange(options.examples, dtype=np.uint32) + np.uint32(step * options.examples % 2**32)
        return {"pixels": to_pixels(np.stack(views)), "index": index[part], "step": np.full(len(views), step, np.int32)}

    shown = to_pixels(np.stack([source[i]["pixels"] for i in range(0, len(source), max(1, len(source) // 16))[:16]]))
    rebuild = jax.jit(lambda params: VAE(config.vae).apply({"params": fixed | params["vae"]}, shown))

    def on_sample(step, params, run):
        run.save_sheet(step, pixels_to_pil(np.concatenate([shown, np.asarray(rebuild(params))])))

    mine = local_part(options.examples)
    stream = lambda start: read_ahead(lambda step: batch(step, mine), start)
    name_batch = lambda step: [source.files[i] for i in order(step).rows]
    vae = jax.tree.map(jnp.asarray, fixed | fit(options, trained, loss_fn, stream, on_sample, name_batch)["vae"])
    if is_primary() and not options.freeze_encoder:
        pictures = (batch["pixels"] for batch in islice(stream(0), 20))
        with device_errors():
            scaling = unit_scaling(vae, config.vae, pictures, options.batch_size // jax.device_count())
        config = replace(config, vae=replace(config.vae, scaling=scaling))
        print(f"scaling {scaling}")
    export(options, replace(sd, config=config, params=sd.params | {"vae": vae}))


def unit_scaling(vae: Params, config: VAEConfig, batches: Iterable[np.ndarray], count: int) -> float:
    """Returns the scaling that gives the latents of these pictures unit variance (arXiv 2112.10752, appendix G).

    batches: pixels [B, H, W, 3]. count: how many pictures are encoded at a time.
    """
    parts = (pixels[i : i + count] for pixels in batches for i in range(0, len(pixels), count))
    means = [np.ravel(vae_posterior(vae, part, config)[0]) for part in parts]
    return round(float(1 / np.std(np.concatenate(means))), 5)
