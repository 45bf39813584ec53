"""The options that all training commands share, and checks of options that several of them have."""

from dataclasses import dataclass
from pathlib import Path

import optax

from sdjax.data.picture import CROPS
from sdjax.devices.layouts import KINDS
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.training.boards import check_boards
from sdjax.training.optimizer import make_optimizer
from sdjax.training.sizes import is_base

LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "max_bad_steps": 1,
    "keep": 1,
    "patience": 1,
    "replicas": 1,
    "warmup": 0,
    "sample_every": 0,
    "validate_every": 0,
}


@dataclass(frozen=True)
class TrainOptions:
    """The options that all training commands share. SdjaxError, naming the option, for a value out of range."""

    data: Path
    """Folder of pictures with metadata.jsonl or with .txt captions, or of img2dataset's .tar shards."""
    out: Path
    """The run's folder; the same command again goes on from its newest checkpoint."""
    model: str = "EMOJI"
    """A preset to train from nothing (EMOJI, SD15, ...) or a folder to start from."""
    config: str | None = None
    """The name of a single file's configuration, as cin256-v2, where its tensors do not tell."""
    unet: Path | None = None
    """A file, or a folder, whose UNet takes the place of the model's."""
    vae: Path | None = None
    """The same for the VAE."""
    steps: int = 10_000
    batch_size: int = 64
    """Pictures that go through at once, over all devices of all processes."""
    accumulate: int = 1
    """Batches whose mean gradient makes one step: the same as a batch that many times larger, in less memory."""
    learning_rate: float = 1e-4
    optimizer: str = "adamw"
    """adamw, adafactor, lion or muon (matrices by Muon at the same learning rate, all else by Adam)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: str = "constant"
    """Course of the learning rate after the warm-up: constant, cosine or linear."""
    ema_decay: float = 0.9999
    """0 is no EMA."""
    checkpoint_every: int = 500
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_hours: float = 0.0
    """Besides them one checkpoint is kept for every such number of hours; 0 keeps none."""
    log_every: int = 10
    log_to: str | None = None
    """tensorboard, wandb, or both with a comma: where else to log; TensorBoard if it is installed and this left out."""
    sample_every: int = 500
    """0 draws no samples."""
    validate_every: int = 500
    """Where there is validation data; 0 does not."""
    dry_run: bool = False
    """Print the options, the state and the compiled step's memory, and train nothing."""
    crop: str = "center"
    """center or random: where pictures are cropped to their shape."""
    flip: bool = False
    """Mirror half of the pictures, drawn anew in every epoch, or in each of the --views."""
    buckets: bool = False
    """Crop each picture to the nearest of several aspect ratios instead of to a square; a batch has one of them."""
    max_bad: float = 0.01
    """Share of the pictures that may be unreadable; above it the run stops. RUN/bad_data.jsonl names them."""
    max_bad_steps: int = 10
    """The run stops after so many steps in a row whose loss or gradient is not finite."""
    parallel: str = "pmap"
    """pmap: every device holds the whole state; fsdp: each a slice of it."""
    replicas: int = 1
    """Copies of the state under fsdp, each spread over as many of the devices as are left to it."""
    coordinator: str | None = None
    """HOST:PORT of process 0 where several processes train together; auto: the cluster tells."""
    num_processes: int | None = None
    process_id: int | None = None
    patience: int = 100
    """Seconds after which a process that does not answer ends the others."""
    seed: int = 0

    def __post_init__(self):
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise SdjaxError(f"{name} {getattr(self, name)}: expected at least {least}")
        if not 0 <= self.seed < 2**32:
            raise SdjaxError(f"seed {self.seed}: expected an integer in [0, 2**32)")
        if not 0 <= self.ema_decay < 1:
            raise SdjaxError(f"ema_decay {self.ema_decay}: expected a number in [0, 1)")
        if not 0 < self.learning_rate < float("inf"):
            raise SdjaxError(f"learning_rate {self.learning_rate}: expected a positive number")
        if not 0 <= self.keep_hours < float("inf"):
            raise SdjaxError(f"keep_hours {self.keep_hours}: expected a number from 0 on")
        if not 0 <= self.max_bad <= 1:
            raise SdjaxError(f"max_bad {self.max_bad}: expected a share in [0, 1]")
        if self.crop not in CROPS:
            raise SdjaxError(f"crop {self.crop}: expected {' or '.join(CROPS)}")
        if self.parallel not in KINDS:
            raise SdjaxError(f"parallel {self.parallel}: expected {' or '.join(KINDS)}")
        if self.replicas > 1 and self.parallel != "fsdp":
            raise SdjaxError(
                f"replicas {self.replicas}: needs `parallel` fsdp; under {self.parallel} every device has a copy"
            )
        check_boards(self.log_to)
        self.make_optimizer()

    @property
    def examples(self) -> int:
        """The number of pictures in a step, over all devices of all processes."""
        return self.batch_size * self.accumulate

    def make_optimizer(self) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Returns the optimiser and its schedule, see `sdjax.training.optimizer.make_optimizer`."""
        return make_optimizer(self.optimizer, self.learning_rate, self.steps, self.warmup, self.decay)


def picture_size(size: int | None, config: Config, multiple: int) -> int:
    """Returns `size`, or the model's own for None. SdjaxError unless it is a positive multiple of `multiple`."""
    size = config.size if size is None else size
    if size < 1 or size % multiple:
        raise SdjaxError(f"size {size}: expected a positive multiple of {multiple}")
    return size


def check_channels(model: str, config: Config, condition: str = "text", concat: bool = False) -> None:
    """SdjaxError if the UNet takes a vector, or channels beside the noised latents, that the diffusion loss lacks.

    condition: what the model is trained on. concat: does it stand beside the latents?
    """
    if config.unet.vector and not is_base(config):
        raise SdjaxError(
            f"model {model}: its UNet takes a vector of {config.unet.vector} numbers that training does not give; of "
            "such models only SDXL's base is trained, whose vector is the pooled text and six sizes"
        )
    if config.unet.vector and condition != "text":
        raise SdjaxError(f"condition {condition}: model {model} is told the sizes of pictures, and is trained on text")
    latents = config.vae.latent_channels
    takes = latents if concat else config.unet.in_channels
    if takes != latents:
        raise SdjaxError(
            f"model {model}: its UNet has {takes} input channels; training takes models whose UNet "
            f"has as many as the VAE's latents, {latents}"
        )


def check_dtype(dtype: str) -> None:
    """SdjaxError unless `dtype` is float32 or bfloat16: float16 would need its gradients scaled."""
    if dtype not in ("float32", "bfloat16"):
        raise SdjaxError(f"dtype {dtype}: expected float32 or bfloat16")
