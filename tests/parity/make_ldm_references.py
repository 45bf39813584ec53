"""Regenerates tests/data/ldm_references.npz: what the models of latent diffusion compute, in torch and float64.

    python -m tests.parity.make_ldm_references
    python -m tests.parity.make_ldm_references --mistakes  # how far a mistake moves the results; writes nothing

The models, tests/parity/ldm_models.py's, are tiny and random; sdjax takes no part. The UNets have the averaged weights
where the file holds them. The file's keys are "model/name"; pictures and latents are [B, H, W, C], float32.
"""

import argparse
import functools
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity import ldm_models as models
from tests.parity.ldm_first_stage import FirstStage
from tests.parity.ldm_torch import CONDITIONS, UNet

STEPS = 5
NULL, GUIDANCE = 6, {"tiny-classes": 3.0, "tiny-text": 5.0}  # tiny-classes' null; the others are not guided
#: what compute() can do wrong; "float32" is no mistake, but shows what the precision costs
MISTAKES = {
    "heads": "half the heads, or two for one",
    "order": "q k v before heads in attention blocks",
    "null": "class 5 as the null",
    "codes": "decoding without quantisation",
    "mask order": "the mask before the masked picture's latents",
    "mask range": "a mask of 0 and 1 for -1 and 1",
    "padding": "no attention to the padding of a text",
    "float32": "no mistake, in float32",
}


class LatentDiffusion(nn.Module):
    """All networks of a model, under the published names."""

    def __init__(self, name: str, mistake=None):
        super().__init__()
        self.params = params = models.MODELS[name]["model"]["params"]
        self.guidance, self.mistake = GUIDANCE.get(name), mistake
        self.model = nn.Module()
        self.model.diffusion_model = UNet(params["unet_config"]["params"], mistake)
        self.first_stage_model = FirstStage(params["first_stage_config"]["params"], mistake)
        self.cond_stage_model, self.place = None, None
        if (cond := params["cond_stage_config"]) == models.FIRST_STAGE:
            self.cond_stage_model, self.place = self.first_stage_model, "concat"
        elif isinstance(cond, dict):
            kind = cond["target"].rsplit(".", 1)[1]
            more = {"mistake": mistake} if kind == "BERTEmbedder" else {}
            self.cond_stage_model = CONDITIONS[kind](**cond.get("params", {}), **more)
            self.place = "concat" if kind in ("SpatialRescaler", "Identity") else "context"
        self.null = 5 if mistake == "null" else NULL

    def condition(self, given):
        return None if self.cond_stage_model is None else self.cond_stage_model(given)

    def masked(self, picture, mask):
        """Returns what stands beside x, of pictures in [-1, 1] whose hole is where mask [B, 1, H, W] is 1."""
        kept = (1 - mask) * (picture + 1) / 2
        latents = self.cond_stage_model.encode(2 * kept - 1)["mean"]
        small = F.interpolate(mask if self.mistake == "mask range" else 2 * mask - 1, latents.shape[2:])
        return torch.cat([small, latents] if self.mistake == "mask order" else [latents, small], 1)

    def predict(self, x, t, cond):
        unet = self.model.diffusion_model
        return unet(torch.cat([x, cond], 1), t) if self.place == "concat" else unet(x, t, cond)

    def decode(self, latents):
        return self.first_stage_model.decode(latents / self.scale)

    def walk(self, x, cond, null=None):
        """Returns the latents of DDIM in STEPS steps without noise, guided away from `null` if there is one."""
        kept = np.cumprod(1 - models.betas(self.params))
        times = np.arange(0, 1000, 1000 // STEPS) + 1
        before = [kept[0], *kept[times[:-1]]]
        for t, prior in zip(times[::-1], before[::-1], strict=True):
            each = torch.full(x.shape[:1], int(t))
            eps = self.predict(x, each, cond)
            if null is not None:
                away = self.predict(x, each, null.expand_as(cond))
                eps = away + self.guidance * (eps - away)
            clean = (x - (1 - kept[t]) ** 0.5 * eps) / kept[t] ** 0.5
            x = prior**0.5 * clean + (1 - prior) ** 0.5 * eps
        return x


@functools.cache
def shapes(name: str) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in LatentDiffusion(name).state_dict().items()}


def built(name: str, mistake=None) -> LatentDiffusion:
    """Returns the model as a script would sample with it: its file's weights, the averaged ones where they are."""
    file = models.tensors(name, shapes(name))
    model = LatentDiffusion(name, mistake)
    used = {key: file.get(models.ema_name(key), file[key]) for key in shapes(name)}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in used.items()})
    model.scale = float(file.get("scale_factor", 1.0))
    return model.to(torch.float32 if mistake == "float32" else torch.float64).eval().requires_grad_(False)


def nchw(value: np.ndarray):
    value = torch.from_numpy(value).movedim(-1, 1)
    return value.double()


def nhwc(value) -> np.ndarray:
    return value.movedim(1, -1).float().numpy()


def conditions(name: str) -> dict[str, np.ndarray]:
    """Returns what the condition is made from, for two pictures."""
    if name == "tiny-layout":
        return {"tokens": np.array([models.layout_tokens(**layout, vocabulary=170) for layout in models.LAYOUTS[:2]])}
    if name == "tiny-map":
        blocks = (np.abs(models.normal("tiny-map/map", (2, 8, 8))) * 4).astype(np.int64) % 9
        ids = blocks.repeat(4, 1).repeat(4, 2)
        return {"map": np.roll(ids, (1, 2), (1, 2))}  # a cell of 4 x 4 pixels holds several labels
    if name == "tiny-inpaint":
        down, right = np.mgrid[:32, :32]
        rectangle = (down >= 6) & (down < 19) & (right >= 9) & (right < 27)
        disc = (down - 15) ** 2 + (right - 18) ** 2 < 120
        picture = models.normal("tiny-inpaint/picture", (2, 32, 32, 3)).clip(-1, 1)
        return {"picture": picture, "mask": np.stack([rectangle, disc]).astype(np.float32)}
    if name == "tiny-sr":
        return {"small": models.normal("tiny-sr/small", (2, 8, 8, 3)).clip(-1, 1)}
    if name == "tiny-text":
        return {"tokens": np.array(models.TEXTS), "null_tokens": np.array([models.EMPTY])}
    return {"classes": np.array({"tiny-classes": [1, 4], "tiny-classes-old": [0, 999]}[name])}


def given(name: str, model: LatentDiffusion) -> dict[str, np.ndarray]:
    """Returns the inputs of a model. No latent that is decoded lies near the border of two codes."""
    params = model.params
    channels, levels = params["channels"], params["first_stage_config"]["params"]["ddconfig"]["ch_mult"]
    side = 8 * 2 ** (len(levels) - 1)
    inputs = {
        "x": models.normal(f"{name}/x", (2, 8, 8, channels)),
        "t": np.array([801, 37], np.int32),
        "picture": models.normal(f"{name}/picture", (1, side, side, 3)).clip(-1, 1),
    }
    if model.place:
        inputs |= conditions(name)

    def found(kind, latents, margin):
        for seed in range(100):
            value = models.normal(f"{name}/{kind}/{seed}", (2 if kind == "noise" else 1, 8, 8, channels))
            codes = model.first_stage_model.quantize
            if codes is None or codes.margin(latents(value)) > margin:
                return value
        raise RuntimeError(f"{name}: every {kind} has a near tie")

    inputs["latents"] = found("latents", lambda value: nchw(value) / model.scale, 1e-3)
    inputs["noise"] = found("noise", lambda value: walk(model, inputs, nchw(value)) / model.scale, 3e-3)
    return inputs


def made(model: LatentDiffusion, inputs: dict):
    dtype = next(model.parameters()).dtype
    if "mask" in inputs:
        return model.masked(nchw(inputs["picture"]).to(dtype), torch.from_numpy(inputs["mask"])[:, None].to(dtype))
    if "small" in inputs:
        return model.condition(nchw(inputs["small"]).to(dtype))
    source = next((inputs[key] for key in ("classes", "tokens", "map") if key in inputs), None)
    return None if source is None else model.condition(torch.from_numpy(source))


def walk(model: LatentDiffusion, inputs: dict, noise):
    null = None
    if model.guidance:
        empty = inputs.get("null_tokens")
        null = model.condition(torch.tensor([model.null]) if empty is None else torch.from_numpy(empty))
    return model.walk(noise, made(model, inputs), null)


def outputs(model: LatentDiffusion, inputs: dict) -> dict[str, np.ndarray]:
    dtype = next(model.parameters()).dtype
    read = lambda key: nchw(inputs[key]).to(dtype)
    cond = made(model, inputs)
    results = {"predict": model.predict(read("x"), torch.from_numpy(inputs["t"]), cond)}
    results |= model.first_stage_model.encode(read("picture"))
    results |= {"decode": model.decode(read("latents")), "walk": walk(model, inputs, read("noise"))}
    results["pixels"] = model.decode(results["walk"])
    results = {key: nhwc(value) for key, value in results.items()}
    if model.place:
        results[model.place] = nhwc(cond) if model.place == "concat" else cond.float().numpy()
    return results


@functools.cache
def all_given() -> dict[str, dict[str, np.ndarray]]:
    return {name: given(name, built(name)) for name in models.MODELS}


def compute(mistake: str | None = None) -> dict[str, np.ndarray]:
    """Returns "model/name" -> inputs and outputs; the outputs have a mistake if one is named."""
    arrays = {}
    for name, inputs in all_given().items():
        here = inputs | outputs(built(name, mistake), inputs)
        here["shapes"] = np.array(json.dumps(shapes(name)))
        arrays |= {f"{name}/{key}": value for key, value in here.items()}
    tokens = lambda layout: layout | {"tokens": models.layout_tokens(**layout, vocabulary=170)}
    arrays["tiny-layout/layouts"] = np.array(json.dumps([tokens(layout) for layout in models.LAYOUTS]))
    arrays["draw"] = models.draw("draw.weight", (2, 8))  # differs where numpy's stream of normal numbers does
    arrays["tiny-layout/outside"] = np.array(json.dumps(tokens(models.OUTSIDE)))
    return {key: value.astype(np.int32) if value.dtype == np.int64 else value for key, value in arrays.items()}


def table() -> None:
    """Prints by how much each mistake moves the condition and the results: the largest difference."""
    right, kinds = compute(), ("context", "concat", "predict", "decode", "walk", "pixels")
    row = lambda *cells: print("| " + " | ".join(cells) + " |")
    row("mistake", "model", *kinds)
    row(*["---"] * (2 + len(kinds)))
    cell = lambda value: f"{value:.1e}" if value else "0"
    size = lambda key: np.abs(right[key]).max() if key in right else 0
    for name in models.MODELS:
        row("(largest value)", name, *(cell(size(f"{name}/{kind}")) for kind in kinds))
    for mistake in MISTAKES:
        wrong = compute(mistake)
        for name in models.MODELS:
            keys = [f"{name}/{kind}" for kind in kinds]
            moved = [np.abs(wrong[key] - right[key]).max() if key in right else 0 for key in keys]
            if any(moved):
                row(mistake, name, *map(cell, moved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mistakes", action="store_true", help="print how far mistakes move the results")
    torch.set_num_threads(1)
    if parser.parse_args().mistakes:
        return table()
    np.savez_compressed(models.PATH, **compute())
    print(f"{models.PATH}: {models.PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
