"""Mistakes that an implementation of SDXL makes, to be injected one at a time: see test_sdxl_mistakes.py.

Those of the refiner, of the hand-over and of the distilled models stand in the tests of these.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax.networks.clip import network as clip
from sdjax.networks.unet import blocks
from sdjax.nn import layers, transformer
from tests.parity.mistakes import SMALL_EPS, TANH, changed, without
from tests.parity.sdxl_models import FEATURES, FIRST, PROMPTS, SECOND, SEED, TEXT, UNET, WALK, drawn, noise, off
from tests.parity.sdxl_models import unet_peer as peer

SIZES = {"original_size": (100, 700), "crop": (3, 5), "target_size": (90, 80)}
NUMBERS = [[100, 700, 3, 5, 90, 80]] * 2
STEPS = 4


class Mistake(NamedTuple):
    """What is wrong, and the limit by which it is seen."""

    measure: Callable  # (diffusers' pipeline, our model, **what the mistake changes in it) -> how far off
    limit: float
    patches: tuple = ()  # (place, name, wrong value)
    given: dict[str, Any] = {}  # to `measure`  # noqa: RUF012


as_it_is = lambda value: value


# ---- how far off


def encoded(pipe):
    states, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    return states.detach().numpy(), pooled.detach().numpy()


def context(pipe, sd, model=as_it_is, cond=as_it_is) -> float:
    return off(cond(sdjax.encode_prompt(model(sd), PROMPTS)).context, encoded(pipe)[0])


def pooled(pipe, sd, model=as_it_is) -> float:
    return off(sdjax.encode_prompt(model(sd), PROMPTS).vector[:, :SECOND], encoded(pipe)[1])


def output(pipe, sd, model=as_it_is, cond=as_it_is, t=501.0) -> float:
    x, right = noise(SEED, 2), sdjax.encode_prompt(sd, PROMPTS, **SIZES)
    return off(sdjax.predict(model(sd), x, t, cond(right)), peer(pipe, x, 501.0, right, NUMBERS))


def walk(pipe, sd, negative=None, **options) -> float:
    """Of Euler's four steps away from an encoded prompt that `negative` makes: "" and zeros by default."""
    want = drawn(pipe, PROMPTS, num_inference_steps=STEPS)
    if negative is not None:
        options["negative_prompt"] = negative(sdjax.encode_prompt(sd, ""))
    options = {"steps": STEPS, "sampler": "euler", "seed": SEED, "output": "latents"} | options
    return off(sdjax.txt2img(sd, options.pop("prompt", PROMPTS), **options), want)


# ---- what is wrong


def tower(part: str, **wrong):
    """The model with other fields in one tower's config."""
    return {"model": lambda sd: replace(sd, config=replace(sd.config, **{part: replace_tower(sd, part, wrong)}))}


def replace_tower(sd, part: str, wrong):
    config = getattr(sd.config, part)
    return replace(config, **{key: value(config) if callable(value) else value for key, value in wrong.items()})


def transposed(sd):
    text = sd.params["text_2"]
    projection = {"kernel": text["projection"]["kernel"].T}
    return replace(sd, params=sd.params | {"text_2": text | {"projection": projection}})


def normed(cond):
    """The whole context normalised, as a final LayerNorm would."""
    parts = (cond.context[..., :FIRST], cond.context[..., FIRST:])
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    return cond._replace(context=jnp.concatenate([norm(part) for part in parts], -1))


def numbers(change):
    """A Cond whose features of the sizes [B, 6, 256] are changed."""

    def wrong(cond):
        features = np.asarray(cond.vector[:, SECOND:]).reshape(2, 6, FEATURES)
        return cond._replace(vector=np.concatenate([cond.vector[:, :SECOND], change(features).reshape(2, -1)], 1))

    return {"cond": wrong}


halves = lambda features: np.roll(features, FEATURES // 2, -1)
zeros = lambda cond: cond._replace(context=np.zeros_like(cond.context))
zero_pooled = lambda cond: cond._replace(vector=np.asarray(cond.vector).copy() * (np.arange(SECOND + 1536) >= SECOND))
zero_vector = lambda cond: zeros(cond)._replace(vector=np.zeros_like(cond.vector))

MISTAKES = {
    "the final norm on": Mistake(context, TEXT, given={"cond": normed}),
    "the last layer of the first tower": Mistake(context, TEXT, given=tower("text", back=0)),
    "the last layer of the second tower": Mistake(context, TEXT, given=tower("text_2", back=0)),
    "one layer earlier": Mistake(context, TEXT, given=tower("text_2", back=2)),
    "halves exchanged": Mistake(
        context, TEXT, given={"cond": lambda cond: cond._replace(context=np.roll(cond.context, SECOND, -1))}
    ),
    "the second tower padded as the first": Mistake(context, TEXT, given=tower("text_2", pad_token=579)),
    "the first tower padded as the second": Mistake(context, TEXT, given=tower("text", pad_token=0)),
    "the first tower's gelu": Mistake(context, TEXT, given=tower("text", activation="gelu")),
    "the second tower's quick_gelu": Mistake(context, TEXT, given=tower("text_2", activation="quick_gelu")),
    "the second tower's tanh gelu": Mistake(context, TEXT, ((clip, "ACTIVATIONS", TANH),)),
    "pooled with tanh gelu": Mistake(pooled, TEXT, ((clip, "ACTIVATIONS", TANH),)),
    "text LayerNorm eps 1e-6": Mistake(pooled, TEXT, ((clip, "LayerNorm", SMALL_EPS),)),
    "pooled without the final norm": Mistake(
        pooled, TEXT, ((clip, "LayerNorm", without(layers.LayerNorm, "final_norm")),)
    ),
    "pooled from the last layer but one": Mistake(
        pooled, TEXT, given=tower("text_2", layers=lambda config: config.layers - 1)
    ),
    "projection transposed": Mistake(pooled, TEXT, given={"model": transposed}),
    "the end is id 2": Mistake(pooled, TEXT, given=tower("text_2", eos_token=2)),
    "pooled at the last token": Mistake(pooled, TEXT, ((clip, "pool_text", lambda states, *_: states[:, -1]),)),
    "width before height": Mistake(output, UNET, given=numbers(lambda a: a[:, [1, 0, 3, 2, 5, 4]])),
    "the target first": Mistake(output, UNET, given=numbers(lambda a: np.roll(a, 2, 1))),
    "sin before cos in the sizes": Mistake(output, UNET, given=numbers(halves)),
    "sizes before the pooled embedding": Mistake(
        output, UNET, given={"cond": lambda cond: cond._replace(vector=np.roll(cond.vector, 1536, 1))}
    ),
    "no sizes": Mistake(output, UNET, given=numbers(np.zeros_like)),
    "t + 1": Mistake(output, UNET, given={"t": 502.0}),
    "transformer GroupNorm eps 1e-5": Mistake(
        output, UNET, ((transformer, "GroupNorm", changed(layers.GroupNorm, eps=1e-5)),)
    ),
    "UNet LayerNorm eps 1e-6": Mistake(output, UNET, ((transformer, "LayerNorm", SMALL_EPS),)),
    "UNet ResBlock eps 1e-6": Mistake(output, UNET, ((blocks, "ResBlock", changed(layers.ResBlock, eps=1e-6)),)),
    "UNet tanh gelu": Mistake(output, UNET, ((transformer, "ACTIVATIONS", TANH),)),
    "heads half as wide": Mistake(
        output,
        UNET,
        given={
            "model": lambda sd: replace(
                sd,
                config=replace(sd.config, unet=replace(sd.config.unet, heads=(2, 8))),
            )
        },
    ),
    "the empty prompt for zeros": Mistake(walk, WALK, given={"negative": as_it_is}),
    "zeros without those of the pooled embedding": Mistake(walk, WALK, given={"negative": zeros}),
    "zeros of the pooled embedding alone": Mistake(walk, WALK, given={"negative": zero_pooled}),
    "zeros of the sizes, too": Mistake(walk, WALK, given={"negative": zero_vector}),
    "guidance of SD 1": Mistake(walk, WALK, given={"guidance_scale": 7.5}),
    "trailing for leading": Mistake(walk, WALK, given={"spacing": "trailing"}),
    "the next seed": Mistake(walk, WALK, given={"seed": SEED + 1}),
    "prompts exchanged": Mistake(walk, WALK, given={"prompt": PROMPTS[::-1]}),
}
