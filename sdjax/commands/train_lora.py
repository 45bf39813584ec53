"""Trains a LoRA or a relative of it on pictures; the model itself is frozen.

python train/train_lora.py --data DIR --out RUN --rank 8 --steps 400
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from sdjax.adapters.lora import Added, merge
from sdjax.data.source import Pictures
from sdjax.devices.processes import is_primary
from sdjax.diffusion.noise import example_keys
from sdjax.errors import SdjaxError, log
from sdjax.model.value import StableDiffusion
from sdjax.training.captions import Table, batch_shapes
from sdjax.training.conditions import text_null
from sdjax.training.diffusion import text_cond
from sdjax.training.diffusion_options import PartOptions
from sdjax.training.loop import on_primary
from sdjax.training.lora import Site, changes, chosen_sites, initial_tree, with_changes
from sdjax.training.lora_export import as_file, read_init, write_lora
from sdjax.training.options import check_channels
from sdjax.training.pictures import Part, Prior, as_asked, loss_as_asked, sample_prompts, train_on_pictures, with_views
from sdjax.training.prior import draw_prior
from sdjax.training.sizes import bucket_multiple
from sdjax.training.start import open_pictures, start_model
from sdjax.training.text import captions_given, check_clip_text, empty_tokens, read_cond, towers_of
from sdjax.types import Array, Batch, Cond, Params


@dataclass(frozen=True)
class Options(PartOptions):
    learning_rate: float = 1e-4
    kind: Literal["lora", "locon", "loha", "lokr", "dora"] = "lora"
    """lora; locon: LoRA whose convolutions have a middle; loha, lokr: products of small matrices (LyCORIS); dora: LoRA
    with magnitudes."""
    rank: int = 16
    """Columns of the factors."""
    alpha: float | None = None
    """The change is multiplied by alpha / rank; the rank when not given, that is 1."""
    targets: Literal["attention", "linear", "all"] = "attention"
    """attention: its queries, keys, values and outputs; linear: all matrices of the transformers; all: convolutions and
    the time's matrices too."""
    text_learning_rate: float | None = None
    """Train the text towers too, with this learning rate, often 5e-5; when not given they stay."""
    dropout: float = 0.0
    """Share of the neurons between the factors that are dropped in each step; of lora and locon."""
    init: Path | None = None
    """A LoRA file to go on from, with its layers, ranks and alphas."""
    shuffle_captions: bool = False
    """Put the parts of a caption between its commas in another order in each epoch."""
    keep_tokens: int = 0
    """So many parts of a caption stay in front."""
    prior: Path | None = None
    """Pictures of what the model knows already (DreamBooth): every second picture of a batch is one of them."""
    prior_prompt: str | None = None
    """Draw them first, with the model as it is, into RUN/prior."""
    prior_images: int = 100
    """Pictures that are drawn for --prior-prompt."""
    prior_weight: float = 1.0
    """Weight of their mean loss beside that of the others."""

    def __post_init__(self):
        super().__post_init__()
        if self.rank < 1:
            raise SdjaxError(f"rank {self.rank}: expected at least 1")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise SdjaxError(f"alpha {self.alpha}: expected a positive number")
        if self.text_learning_rate is not None and not 0 < self.text_learning_rate < float("inf"):
            raise SdjaxError(f"text_learning_rate {self.text_learning_rate}: expected a positive number")
        if not 0 <= self.dropout < 1:
            raise SdjaxError(f"dropout {self.dropout}: expected a number in [0, 1)")
        if self.dropout and self.kind not in ("lora", "locon"):
            raise SdjaxError(
                f"dropout {self.dropout}: of kind lora or locon, {self.kind} has no neurons between factors"
            )
        if self.keep_tokens < 0 or (self.keep_tokens and not self.shuffle_captions):
            raise SdjaxError(f"keep_tokens {self.keep_tokens}: expected a number from 0 on, with `shuffle_captions`")
        if self.prior is not None and self.prior_prompt is not None:
            raise SdjaxError(f"prior {self.prior}: give either a folder or `prior_prompt`")
        if self.prior_images < 1:
            raise SdjaxError(f"prior_images {self.prior_images}: expected at least 1")
        if not 0 <= self.prior_weight < float("inf"):
            raise SdjaxError(f"prior_weight {self.prior_weight}: expected a number from 0 on")
        if self.prior_images != type(self).prior_images and self.prior_prompt is None:
            raise SdjaxError(f"prior_images {self.prior_images}: needs `prior_prompt`")
        if self.prior_weight != type(self).prior_weight and not self.has_prior:
            raise SdjaxError(f"prior_weight {self.prior_weight}: needs `prior` or `prior_prompt`")
        if self.has_prior and self.buckets:
            raise SdjaxError("buckets: not with a prior, whose pictures are of one shape with the others of a batch")
        if self.has_prior and self.examples % 2:
            raise SdjaxError(
                f"batch_size {self.batch_size}: with a prior, an even number, of which half are its pictures"
            )

    @property
    def has_prior(self) -> bool:
        return self.prior is not None or self.prior_prompt is not None

    @property
    def live(self) -> bool:
        """Are captions read in each step?"""
        return self.text_learning_rate is not None or self.shuffle_captions

    def make_optimizer(self) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Returns the optimiser, with a learning rate of its own for text towers, and the UNet's schedule."""
        optimizer, schedule = super().make_optimizer()
        if self.text_learning_rate is None:
            return optimizer, schedule
        share = self.text_learning_rate / self.learning_rate

        def own_rates(updates: Params, _: Params | None) -> Params:
            scaled = lambda own: jax.tree.map(lambda leaf: share * leaf, own)
            return {part: own if part == "unet" else scaled(own) for part, own in updates.items()}

        return optax.chain(optimizer, optax.stateless(own_rates)), schedule


def main(options: Options) -> None:
    """Train a LoRA, LoCon, LoHa, LoKr or DoRA on a folder of captioned pictures."""
    name = options.out.absolute().name
    sd = start_model(options, exported=f"{name}.safetensors", keep_dtype=True)
    check_channels(options.model, sd.config)
    check_clip_text(options.model, sd.config)
    options, sd = with_views(options), as_asked(sd, options)
    parts = ("unet", *towers_of(sd.config)) if options.text_learning_rate else ("unet",)
    sites, tree = starting(sd, options, parts)
    multiple, size = bucket_multiple(sd.config), sd.config.size
    reopen = lambda options: open_pictures(options, size, multiple)
    source, prior = reopen(options), None
    if options.has_prior and not options.dry_run:
        prior = Prior(prior_pictures(sd, options, reopen), options.prior_weight)
    part = lora_part(sd, options, sites, tree, name)
    given = partial(captions_given, sd, shuffle=options.shuffle_captions, keep=options.keep_tokens)

    def make_table(source: Pictures, cache: Path, views: int) -> Table:
        more = {"given": given(source), "states": False} if options.live else {}
        return Table(sd, source, cache, views, **more)

    shapes = batch_shapes(sd.config, options.examples, live=options.live)
    asked = lambda table: lambda params: {"prompt": sample_prompts(options, source)}
    params = train_on_pictures(options, part, source, reopen, make_table, shapes, asked, prior)
    if params is not None:
        said = metadata(options, source, sites)
        path = partial(write_lora, options.out / "export", name, sd, sites, params, said)
        on_primary(lambda: print(path()))


def starting(sd: StableDiffusion, options: Options, parts: tuple[str, ...]) -> tuple[list[Site], Params]:
    """Returns the layers that are trained and their factors."""
    if options.init is not None:
        sites, tree = read_init(sd, options.init, options.kind, parts)
        if is_primary():
            ranks = sorted({len(next(iter(f.values()))) for own in tree.values() for f in own.values()})
            log.info("init %s: its %d layers are trained on", options.init, len(sites))
            log.debug("init %s: sizes of first factors %s", options.init, ranks)
        return sites, tree
    alpha = options.rank if options.alpha is None else options.alpha
    sites = chosen_sites(sd.config, options.targets, alpha, parts)
    if options.kind == "locon" and not any(len(site.shape) == 4 and site.shape[2] > 1 for site in sites):
        log.warning("kind locon: no convolution is among the targets %s, so it is lora", options.targets)
    return sites, initial_tree(options.kind, sites, options.rank, options.seed, sd.params)


def prior_pictures(sd: StableDiffusion, options: Options, reopen: Any) -> Pictures:
    """Returns the pictures of --prior, which are drawn first if --prior-prompt asks for them."""
    folder = options.prior
    if options.prior_prompt is not None:
        folder = options.out / "prior"
        many = options.prior_prompt, options.prior_images, options.seed, sd.config.size
        on_primary(lambda: draw_prior(sd, folder, *many))
    try:
        return reopen(replace(options, data=folder))
    except SdjaxError as error:
        raise SdjaxError(str(error).replace("data ", "prior ", 1)) from None


def lora_part(sd: StableDiffusion, options: Options, sites: list[Site], tree: Params, name: str) -> Part:
    """Returns a LoRA as what is trained: its factors alone; the model's own parameters are frozen arguments."""
    config, texts = sd.config, towers_of(sd.config) if options.live else ()
    host = {part: jax.tree.map(np.asarray, sd.params[part]) for part in ("unet", *texts)}
    null, nothing = (None, empty_tokens(sd)) if options.live else (text_null(sd), None)

    def conditioner(dropout: float) -> Any:
        def cond(params: Params, batch: Batch, drop: Array, key: Array, frozen: Params) -> tuple[Any, Cond]:
            keys = example_keys(key, batch.index) if dropout else None
            whole = lambda part: {"params": frozen[part], "changes": changes(sites, params, part, keys, dropout)}
            if not options.live:
                return whole("unet"), text_cond(batch, null, drop)
            found = read_cond(config, {part: whole(part) for part in texts}, batch, drop, nothing, options.dtype, {})
            return whole("unet"), found

        return cond

    def loss(dropout: float) -> Any:
        return loss_as_asked(options, config, conditioner(dropout), with_changes)

    def whole(params: Params) -> StableDiffusion:
        return merge(sd, [Added(as_file(sd, sites, params, name), 1.0, 1.0)])

    return Part(tree, loss(options.dropout), whole, (host,), loss(0.0) if options.dropout else None)


def metadata(options: Options, source: Pictures, sites: list[Site]) -> dict[str, Any]:
    """Returns what kohya's trainer writes into a file's header, by its names without "ss_"."""
    rank = options.rank
    algorithm = {"loha": "loha", "lokr": "lokr", "locon": "locon", "dora": "lora"}.get(options.kind)
    arguments = {} if algorithm is None else {"algo": algorithm}
    if options.kind == "locon":
        arguments["use_tucker"] = "True"
    if options.kind == "dora":
        arguments["dora_wd"] = "True"
    convolved = any(len(site.shape) == 4 and site.shape[2] > 1 for site in sites)
    if convolved:
        arguments |= {"conv_dim": str(rank), "conv_alpha": str(sites[0].alpha)}
    lycoris = options.kind in ("loha", "lokr", "dora", "locon")
    return {
        "network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "network_dim": str(rank),
        "network_alpha": str(sites[0].alpha),
        "network_args": arguments,
        "network_dropout": str(options.dropout),
        "sd_model_name": str(options.model),
        "learning_rate": str(options.learning_rate),
        "unet_lr": str(options.learning_rate),
        "text_encoder_lr": str(options.text_learning_rate),
        "optimizer": options.optimizer,
        "lr_scheduler": options.decay,
        "lr_warmup_steps": str(options.warmup),
        "max_train_steps": str(options.steps),
        "steps": str(options.steps),
        "total_batch_size": str(options.examples),
        "gradient_accumulation_steps": str(options.accumulate),
        "mixed_precision": {"float32": "no", "bfloat16": "bf16"}[options.dtype],
        "num_train_images": str(len(source)),
        "seed": str(options.seed),
        "min_snr_gamma": str(options.min_snr_gamma),
        "noise_offset": str(options.noise_offset),
        "caption_dropout_rate": str(options.caption_dropout),
        "prior_loss_weight": str(options.prior_weight),
        "shuffle_caption": str(options.shuffle_captions),
        "keep_tokens": str(options.keep_tokens),
        "training_comment": "sdjax train lora",
    }
