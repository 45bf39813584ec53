"""The options that the commands share which train a UNet, or a part of it, on pictures with captions."""

import math
from dataclasses import dataclass

from sdjax.errors import SdjaxError, prefixed
from sdjax.files import read_prompts
from sdjax.training.options import TrainOptions, check_dtype


@dataclass(frozen=True)
class DiffusionOptions(TrainOptions):
    """The options of a training on pictures. SdjaxError, naming the option, for a value out of range."""

    model: str = "emoji"
    """The bundled model, a folder or a file to start from, or a preset to train from nothing (EMOJI, SD15, ...)."""
    prediction: str | None = None
    """What the network regresses: epsilon or v; the model's own when not given."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, of classes by the null class, of layouts by the empty layout, for
    classifier-free guidance. SDXL's two text embeddings are dropped each by itself. What stands beside the latents, and
    SDXL's sizes, are never dropped."""
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
    views: int | None = None
    """Crops and flips of each picture that are encoded beforehand and then take turns; when not given 4 with --flip or
    --crop random, and 1 without."""
    size: int | None = None
    """Pixels a side; the model's own when not given."""
    validation: str | None = None
    """Number of pictures of --data that are held out, or a folder of others: their loss is logged."""
    sample_prompts: str = "16"
    """What sample grids draw: a number of captions of the data, or a file with a prompt a line."""

    def __post_init__(self):
        super().__post_init__()
        if self.prediction not in (None, "epsilon", "v"):
            raise SdjaxError(f"prediction {self.prediction}: expected epsilon or v")
        if not 0 <= self.caption_dropout <= 1:
            raise SdjaxError(f"caption_dropout {self.caption_dropout}: expected a number in [0, 1]")
        if self.min_snr_gamma is not None and not 0 < self.min_snr_gamma < float("inf"):
            raise SdjaxError(f"min_snr_gamma {self.min_snr_gamma}: expected a positive number")
        if self.logit_normal is not None and not (
            all(map(math.isfinite, self.logit_normal)) and self.logit_normal[1] > 0
        ):
            raise SdjaxError(f"logit_normal {self.logit_normal}: expected a mean and a positive spread")
        if not 0 <= self.noise_offset < float("inf"):
            raise SdjaxError(f"noise_offset {self.noise_offset}: expected a number from 0 on")
        check_dtype(self.dtype)
        if self.views is not None and self.views < 1:
            raise SdjaxError(f"views {self.views}: expected at least 1")
        if (self.views or 1) > 1 and not self.varied:
            raise SdjaxError(f"views {self.views}: all would be the same, give `flip` or `crop` random with it")
        if self.sample_prompts.lstrip("-").isdecimal():
            if int(self.sample_prompts) < 1:
                raise SdjaxError(f"sample_prompts {self.sample_prompts}: expected at least 1")
        else:
            with prefixed("sample_prompts "):
                read_prompts(self.sample_prompts)

    @property
    def varied(self) -> bool:
        """True if a picture looks different in each view."""
        return self.flip or self.crop == "random"


@dataclass(frozen=True)
class PartOptions(DiffusionOptions):
    """The options of a training of something beside a model that stays as it is, which is short."""

    warmup: int = 0
    """Steps of linear warm-up."""
    ema_decay: float = 0.0
    """0 is no EMA: of a short training it would be the beginning."""
