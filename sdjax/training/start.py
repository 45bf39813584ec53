"""How a training job starts: joins its processes, locks its folder, loads the model and opens the data."""

import time
from pathlib import Path
from uuid import uuid4

import jax

from sdjax.data.columns import Column
from sdjax.data.source import Pictures, open_data
from sdjax.devices.host import open_more_files, return_memory
from sdjax.devices.layouts import check_batch_size
from sdjax.devices.processes import agree, everyone, is_primary, start_processes
from sdjax.errors import SdjaxError, loading
from sdjax.files import check_folder
from sdjax.model.load import create
from sdjax.model.value import StableDiffusion
from sdjax.training.loop import on_primary
from sdjax.training.options import TrainOptions
from sdjax.training.run import hold
from sdjax.training.signals import leave_on_signals


def start_model(
    options: TrainOptions,
    tokenizer: bool = True,
    without: str | None = None,
    exported: str = "model_index.json",
    keep_dtype: bool = False,
) -> StableDiffusion:
    """Joins the job's processes and returns the model that --model names; what is cheap to refuse is refused first.

    tokenizer: refuse a model that has none, as a small preset.
    without, keep_dtype: see `sdjax.model.load.create`.
    exported: a file in RUN/export by which it is known as this command's; what else is there is not written over.
    SdjaxError: the folder cannot be used, another process trains there, or the model does not fit.
    """
    start_processes(options.coordinator, options.num_processes, options.process_id, options.patience)
    check_folder(options.out)
    check_shared(options.out)
    leave_on_signals(options.out)
    check_batch_size(options.batch_size)
    export = options.out / "export"
    if export.exists() and not (export / exported).is_file():
        what = "is not a model folder" if exported == "model_index.json" else f"has no {exported}"
        raise SdjaxError(f"out {options.out}: {export} exists and {what}; move it away")
    if not options.dry_run:
        on_primary(lambda: hold(options.out))  # before anything is cached there
    open_more_files()
    return_memory()
    with loading(""):
        parts = {"unet": options.unet, "vae": options.vae}
        sd = create(options.model, options.seed, without, options.config, **parts, keep_dtype=keep_dtype)
    if tokenizer and sd.config.text is not None and sd.tokenizer is None:
        raise SdjaxError(f"model {options.model}: has no tokenizer; start from the export of train/train_clip.py")
    return sd


def check_shared(out: Path, seconds: float = 60.0) -> None:
    """SdjaxError on all processes if one of them does not see a file that process 0 writes to `out`.

    Such a process would later wait for files that never appear there. `seconds`: how long to wait for the file.
    """
    if jax.process_count() == 1:
        return
    mark = out / f".shared-{agree(uuid4().int % 2**31)}.tmp"
    if is_primary():
        mark.touch()
    agree(0)  # a barrier: now the file is there
    until = time.monotonic() + seconds  # for slow network file systems
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.5)
    seen = everyone(mark.exists())
    if is_primary():
        mark.unlink(missing_ok=True)
    if not all(seen):
        raise SdjaxError(
            f"out {out}: process {seen.index(0)} does not see there what process 0 writes; a folder "
            "that all processes share is needed"
        )


def open_pictures(
    options: TrainOptions, size: int, multiple: int | None = None, column: Column | None = None, captions: bool = True
) -> Pictures:
    """Returns the pictures that --data names.

    size: the side of square crops in pixels.
    multiple: with --buckets, the sides of crops are multiples of it; None: the model takes squares only.
    column, captions: see `sdjax.data.listing.list_data`.
    """
    if options.buckets and multiple is None:
        raise SdjaxError("buckets: this model takes squares only")
    return open_data(
        options.data,
        size,
        options.max_bad,
        options.out,
        options.crop,
        options.flip,
        multiple if options.buckets else None,
        options.seed,
        jax.process_index(),
        column,
        captions,
    )
