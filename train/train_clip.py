"""Trains CLIP from nothing: a text tower with its own BPE vocabulary and an image tower, contrastively."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import cli
from sdjax.config import EMOJI_VISION
from sdjax.data import batches, open_folder, to_pixels
from sdjax.loop import TrainOptions, fit, start_model
from sdjax.loss import clip_contrastive
from sdjax.nn.clip import ImageTower, TextTower, pool_text
from sdjax.text import tokenize, train_bpe


@dataclass(frozen=True)
class Options(TrainOptions):
    """Contrastive training compares each picture with every caption of its batch: large batches help."""

    batch_size: int = 256


def main(options: Options) -> None:
    """Train CLIP's text and image towers on a folder of captioned pictures."""
    sd = start_model(options, tokenizer=False)
    text, vision = sd.config.text, replace(EMOJI_VISION, projection=sd.config.text.width)
    source = open_folder(options.data, vision.size)
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
    stream = lambda start: batches(source, options.batch_size, options.seed, start, collate)
    params = jax.tree.map(np.asarray, fit(options, params, loss_fn, stream))
    sd = replace(sd, params=sd.params | {"text": params.pop("text")}, tokenizer=tokenizer)
    sdjax.save(sd, options.out / "export")
    sdjax.save_clip(params, vision, options.out / "export" / "clip")
    print(options.out / "export")


if __name__ == "__main__":
    cli.run(main, Options)
