"""Trains CLIP from nothing: a text tower with its own BPE vocabulary and an image tower, contrastively.

In a random batch of a composed data set the backgrounds tell most pairs apart, and a tower that knows colours alone is
soon nearly right: its states hardly say which thing is meant. --alike style,background makes half of every batch agree
in these fields of metadata.jsonl, so that what is left has to be told apart.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import cli
from sdjax.config import EMOJI_VISION
from sdjax.data import batches, to_pixels
from sdjax.errors import SdjaxError
from sdjax.loop import TrainOptions, export, fit, open_pictures, start_model
from sdjax.loss import clip_contrastive
from sdjax.nn.clip import ImageTower, TextTower, pool_text
from sdjax.parallel import is_primary
from sdjax.text import tokenize, train_bpe


@dataclass(frozen=True)
class Options(TrainOptions):
    """Contrastive training compares each picture with every caption of its batch: large batches help.

    With pmap that is the device's share of the batch, and --accumulate does not make it larger.
    """

    batch_size: int = 256
    alike: str = ""
    """Fields of metadata.jsonl, separated by commas, in which half of every batch agrees."""


def half_alike(options: Options, texts: tuple[str, ...]) -> Callable[[int], np.ndarray]:
    """step -> the batch's rows, [B], no caption twice in the half that agrees in the fields of --alike."""
    names = options.alike.split(",")
    records = [json.loads(line) for line in (options.data / "metadata.jsonl").read_bytes().splitlines() if line.strip()]
    if lacking := [name for name in names if not any(name in record for record in records)]:
        raise SdjaxError(f"--alike {options.alike}: no line of metadata.jsonl has a field {lacking[0]!r}")
    groups = {}
    for row, record in enumerate(records):
        groups.setdefault(tuple(record.get(name) for name in names), {}).setdefault(texts[row], []).append(row)
    groups = [list(group.values()) for group in groups.values()]

    def choose(step: int) -> np.ndarray:
        rng = np.random.default_rng((options.seed, step))
        group = groups[rng.integers(len(groups))]
        alike = [rng.choice(group[i]) for i in rng.permutation(len(group))[: options.examples // 2]]
        return np.concatenate([alike, rng.integers(len(texts), size=options.examples - len(alike))])

    return choose


def main(options: Options) -> None:
    """Train CLIP's text and image towers on a folder of captioned pictures."""
    sd = start_model(options, tokenizer=False)
    text, vision = sd.config.text, replace(EMOJI_VISION, projection=sd.config.text.width)
    source = open_pictures(options, vision.size)
    tokenizer = sd.tokenizer or train_bpe(source.texts, text.vocab_size, options.out / "tokenizer", text.length)
    ids = tokenize(tokenizer, text, source.texts)
    text_tower, image_tower = TextTower(text), ImageTower(vision)

    def collate(items):
        index = np.array([item["index"] for item in items], np.int32)
        return {"pixels": to_pixels(np.stack([item["pixels"] for item in items])), "ids": ids[index]}

    def embed(params, batch):
        image = image_tower.apply({"params": params["vision"]}, batch["pixels"])
        states = text_tower.apply({"params": params["text"]}, batch["ids"])
        return image, pool_text(states, batch["ids"], text.eos_token) @ params["text_projection"]

    def loss_fn(params, batch, key):
        image, words = embed(params, batch)
        losses = clip_contrastive(image, words, params["logit_scale"])
        nearest = jnp.argmax(image @ words.T / jnp.linalg.norm(words, axis=-1), axis=1)
        return losses, {"retrieval": (nearest == jnp.arange(len(words))).mean()}

    key = jax.random.key(options.seed)
    width = text.width
    params = {
        "text": sd.params["text"],
        "vision": jax.jit(image_tower.init)(key, jnp.zeros((1, vision.size, vision.size, 3)))["params"],
        "text_projection": jax.random.normal(jax.random.fold_in(key, 1), (width, vision.projection)) * width**-0.5,
        "logit_scale": jnp.log(jnp.float32(1 / 0.07)),  # arXiv 2103.00020, section 2.5
    }
    stream = lambda start: batches(source, options.examples, options.seed, start, collate)
    if options.alike:
        choose = half_alike(options, source.texts)
        stream = lambda start: batches(range(options.steps), 1, None, start, lambda steps: collate(
            [source[int(i)] for i in choose(steps[0])]))
    params = fit(options, params, loss_fn, stream)
    sd = replace(sd, params=sd.params | {"text": params.pop("text")}, tokenizer=tokenizer)
    export(options, sd)
    if is_primary():
        sdjax.save_clip(params, vision, options.out / "export" / "clip")


if __name__ == "__main__":
    cli.run(main, Options)
