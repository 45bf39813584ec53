"""Tiny models of latent diffusion's every kind, in their published layout, equal what torch computed in float64.

The numbers come from modules written by the published facts: `python -m tests.parity.make_ldm_references`, whose
`--mistakes` shows what each mistake below changes there. Each file has its yaml beside it, and is read as a user's.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import sdjax
from sdjax.conditioning.layouts import layout_tokens
from sdjax.families.table import family_of
from sdjax.model.functions import text_states
from sdjax.weights import convert
from tests.parity.ldm_models import MODELS, PATH, checkpoint

pytestmark = pytest.mark.usefixtures("quick_compile")

MODULE, FIRST_STAGE, WALK = 5e-6, 2e-5, 1e-4  # of the largest value


@pytest.fixture(scope="module")
def numbers():
    with np.load(PATH) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for name, content in MODELS.items():
        save_file(checkpoint(name), folder / f"{name}.safetensors")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def off(got, want) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())


def asked(sd, name, numbers):
    """The condition of both pictures."""
    of = lambda key: numbers[f"{name}/{key}"]
    if sd.config.class_table:
        return sdjax.encode_classes(sd, of("classes").tolist())
    if sd.config.layout:
        cases = json.loads(of("layouts").item())
        conds = [sdjax.encode_layout(sd, [case["boxes"]], case["crop"]) for case in cases]
        rows = [[case["tokens"] for case in cases].index(tokens) for tokens in of("tokens").tolist()]
        return sdjax.Cond(np.concatenate([conds[row].context for row in rows]))
    if sd.config.map:
        return sdjax.encode_map(sd, of("map"))
    if sd.config.text:
        tokens = np.concatenate([of("tokens"), of("null_tokens")])
        return sdjax.Cond(text_states(sd.params["text"], tokens, sd.config.text))
    if family_of(sd.config).concat == "mask":
        return sdjax.encode_mask(sd, of("picture"), of("mask"))
    return sdjax.encode_lowres(sd, of("small")) if family_of(sd.config).concat == "lowres" else None


def measure(sd, name, numbers) -> dict[str, float]:
    """How far each result is off."""
    of = lambda key: numbers[f"{name}/{key}"]
    cond, negative = asked(sd, name, numbers), ""
    if sd.config.text:
        cond, negative = sdjax.Cond(cond.context[:2]), sdjax.Cond(cond.context[2:])
    found = {"predict": off(sdjax.predict(sd, of("x"), of("t"), cond or sdjax.Cond()), of("predict"))}
    if cond is not None:
        field = "context" if cond.concat is None else "concat"
        found[field] = off(getattr(cond, field), of(field))
    mean, logvar = sdjax.vae_moments(sd, of("picture"))
    found["mean"] = off(mean, of("mean"))
    if f"{name}/logvar" in numbers:
        found["logvar"] = off(logvar, of("logvar"))
    found["decode"] = off(sdjax.decode(sd, of("latents")), of("decode"))
    many = {} if cond is not None else {"num_images": 2}
    side = of("x").shape[1] * sd.config.vae.factor
    walk = sdjax.txt2img(
        sd,
        cond,
        negative_prompt=negative,
        steps=5,
        sampler="ddim",
        latents=of("noise"),
        output="latents",
        height=side,
        width=side,
        **many,
    )
    return found | {"walk": off(walk, of("walk")), "pixels": off(sdjax.decode(sd, walk), of("pixels"))}


LIMITS = {
    "predict": MODULE,
    "context": MODULE,
    "concat": MODULE,
    "mean": FIRST_STAGE,
    "logvar": FIRST_STAGE,
    "decode": FIRST_STAGE,
    "walk": WALK,
    "pixels": WALK,
}


@pytest.mark.parametrize("name", MODELS)
def test_published_layout_equals_torch(name, files, numbers):
    found = measure(sdjax.load(files / f"{name}.safetensors"), name, numbers)
    limits = LIMITS | ({"concat": FIRST_STAGE} if name == "tiny-inpaint" else {})  # it comes out of the encoder
    assert len(found) >= 5 and all(found[key] < limits[key] for key in found), found


def wrong_heads(sd):
    unet = replace(sd.config.unet, heads=tuple(2 * heads for heads in sd.config.unet.heads))
    return replace(sd, config=replace(sd.config, unet=unet))


def wrong_null(sd):
    table = np.array(sd.params["class_table"]["embedding"])
    table[6] = table[5]
    return replace(sd, params=sd.params | {"class_table": {"embedding": table}})


def wrong_codes(sd):
    vae = dict(sd.params["vae"], decoder=dict(sd.params["vae"]["decoder"]))
    vae["decoder"].pop("codebook")
    return replace(
        sd, config=replace(sd.config, vae=replace(sd.config.vae, codes=None)), params=sd.params | {"vae": vae}
    )


MISTAKES = {
    "heads": ("tiny-faces", wrong_heads, "predict"),
    "one head": ("tiny-classes", wrong_heads, "predict"),
    "the null class": ("tiny-classes", wrong_null, "walk"),
    "no quantisation": ("tiny-map", wrong_codes, "decode"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake, files, numbers):
    name, spoil, where = MISTAKES[mistake]
    sd = spoil(sdjax.load(files / f"{name}.safetensors"))
    if where == "decode":
        got = off(sdjax.decode(sd, numbers[f"{name}/latents"]), numbers[f"{name}/decode"])
    elif where == "predict":
        x, t = numbers[f"{name}/x"], numbers[f"{name}/t"]
        got = off(sdjax.predict(sd, x, t, asked(sd, name, numbers) or sdjax.Cond()), numbers[f"{name}/predict"])
    else:
        got = measure(sd, name, numbers)[where]
    assert got > 100 * LIMITS[where]


def test_the_order_of_stacked_q_k_v_and_the_ema_matter(files, numbers, monkeypatch):
    path, x, t = files / "tiny-map.safetensors", numbers["tiny-map/x"], numbers["tiny-map/t"]
    predict = lambda sd: off(sdjax.predict(sd, x, t, asked(sd, "tiny-map", numbers)), numbers["tiny-map/predict"])
    right = convert.of_heads
    monkeypatch.setattr(convert, "of_heads", lambda heads, i: right(1, i))  # q, k, v first, then heads
    assert predict(sdjax.load(path)) > 100 * MODULE
    monkeypatch.undo()
    online = {name: value for name, value in checkpoint("tiny-map").items() if not name.startswith("model_ema.")}
    save_file(online, files / "online.safetensors")
    (files / "online.yaml").write_text((files / "tiny-map.yaml").read_text())
    assert predict(sdjax.load(files / "online.safetensors")) > 100 * MODULE


def test_layouts_as_tokens(numbers, files):
    config = sdjax.load(files / "tiny-layout.safetensors").config.layout
    for case in [*json.loads(numbers["tiny-layout/layouts"].item()), json.loads(numbers["tiny-layout/outside"].item())]:
        assert layout_tokens(config, case["boxes"], case["crop"]).tolist() == case["tokens"]
    assert PATH.stat().st_size < 1_000_000
