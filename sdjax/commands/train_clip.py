"""Trains CLIP from nothing, with the contrastive loss: a text tower with its own BPE vocabulary, and an image tower.

In a random batch of a composed data set the backgrounds tell most pairs apart. A tower that knows only colours is then
soon nearly right, and its states hardly say which thing is meant. --alike style,background makes half of every batch
agree in these fields of metadata.jsonl, so that the towers must tell it apart by the rest.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax.data.listing import metadata_lines
from sdjax.data.order import Chosen, Order, read_ahead
from sdjax.data.picture import to_pixels
from sdjax.devices.layouts import make_layout
from sdjax.devices.processes import local_part
from sdjax.errors import SdjaxError
from sdjax.families.sd import EMOJI_VISION
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.clip.network import ImageTower
from sdjax.text.bpe import train_bpe
from sdjax.text.tokenizer import tokenize
from sdjax.training.clip import clip_loss
from sdjax.training.loop import dry_run, export, fit, on_primary
from sdjax.training.options import TrainOptions
from sdjax.training.start import open_pictures, start_model


@dataclass(frozen=True)
class Options(TrainOptions):
    """Contrastive training compares each picture with every caption of its batch, on all devices, so large batches
    help. --accumulate does not make them larger.
    """

    batch_size: int = 256
    alike: str = ""
    """Fields of metadata.jsonl, separated by commas, in which half of every batch agrees."""


def half_alike(options: Options, texts: tuple[str, ...]) -> Callable[[int], Chosen]:
    """Returns a function step -> the batch's rows, half of which agree in the fields of --alike.

    No caption is twice in that half. SdjaxError: metadata.jsonl has no such field, or several values in one.
    """
    names = options.alike.split(",")
    if not (options.data / "metadata.jsonl").is_file():
        raise SdjaxError(f"--alike {options.alike}: {options.data} has no metadata.jsonl with such fields")
    records = [record for _, _, record in metadata_lines(options.data / "metadata.jsonl")]
    records = [record if isinstance(record, dict) else {} for record in records]  # a bad row has no fields
    if lacking := [name for name in names if not any(name in record for record in records)]:
        raise SdjaxError(f"--alike {options.alike}: no line of metadata.jsonl has a field {lacking[0]!r}")
    groups = {}
    for row, record in enumerate(records):
        for name in names:
            if isinstance(record.get(name), (list, dict)):
                raise SdjaxError(
                    f"--alike {options.alike}: metadata.jsonl has several values in the field {name!r} of "
                    f"{record['file_name']}; expected a text or a number"
                )
        groups.setdefault(tuple(record.get(name) for name in names), {}).setdefault(texts[row], []).append(row)
    groups = [list(group.values()) for group in groups.values()]

    def choose(step: int) -> Chosen:
        rng = np.random.default_rng((options.seed, step))
        group = groups[rng.integers(len(groups))]
        alike = [rng.choice(group[i]) for i in rng.permutation(len(group))[: options.examples // 2]]
        rows = np.concatenate([alike, rng.integers(len(texts), size=options.examples - len(alike))]).astype(int)
        return Chosen(rows, np.full(len(rows), step), 0)

    return choose


def main(options: Options) -> None:
    """Train CLIP's text and image towers on a folder of captioned pictures."""
    sd = start_model(options, tokenizer=False)
    if not isinstance(sd.config.text, TextConfig):
        raise SdjaxError(f"model {options.model}: has no CLIP text tower")
    text, vision = sd.config.text, replace(EMOJI_VISION, projection=sd.config.text.width)
    source = open_pictures(options, vision.size)
    with tempfile.TemporaryDirectory() as folder:  # all processes have the same captions, so the same vocabulary
        tokenizer = sd.tokenizer or train_bpe(source.texts, text.vocab_size, folder, text.length)
    ids = tokenize(tokenizer, text, source.texts)
    key = jax.random.key(options.seed)
    width = text.width
    params = {
        "text": sd.params["text"],
        "vision": jax.jit(ImageTower(vision).init)(key, jnp.zeros((1, vision.size, vision.size, 3)))["params"],
        "text_projection": jax.random.normal(jax.random.fold_in(key, 1), (width, vision.projection)) * width**-0.5,
        "logit_scale": jnp.log(jnp.float32(1 / 0.07)),  # arXiv 2103.00020, section 2.5
    }
    loss_fn = clip_loss(text, vision, make_layout(options.parallel, options.replicas).gather)
    if options.dry_run:
        count, shape = options.examples, jax.ShapeDtypeStruct
        return dry_run(
            options,
            params,
            loss_fn,
            {
                "pixels": shape((count, vision.size, vision.size, 3), np.float32),
                "ids": shape((count, text.length), np.int32),
            },
        )

    choose = (
        half_alike(options, source.texts) if options.alike else Order(source.groups, options.examples, options.seed)
    )
    mine = local_part(options.examples)

    def batch(step: int) -> dict[str, np.ndarray]:
        rows, epochs, _ = choose(step).part(mine)
        items = [source.view(row, epoch) for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True)]
        pixels, index = np.stack([item["pixels"] for item in items]), [item["index"] for item in items]
        return {"pixels": to_pixels(pixels), "ids": ids[index]}

    name_batch = lambda step: [source.files[i] for i in choose(step).rows]
    params = fit(options, params, loss_fn, lambda start: read_ahead(batch, start), name_batch=name_batch)
    sd = replace(sd, params=sd.params | {"text": params.pop("text")}, tokenizer=tokenizer)
    export(options, sd)
    on_primary(lambda: sdjax.save_clip(params, vision, options.out / "export" / "clip"))
