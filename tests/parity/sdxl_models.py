"""The SDXL family as diffusers writes it, a fiftieth as wide: hub-like configs, torch's random weights, our noise.

Every pipeline is built from torch modules alone, saved by diffusers, and then computes in float64: `sdjax.load` reads
what a user downloads, and no field of a config comes from sdjax.
"""

import json
import warnings
from contextlib import contextmanager

import diffusers
import jax
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdjax.text.bpe import train_bpe
from sdjax.text.tokenizer import write_tokenizer_files
from tests.parity.peers import nchw, nhwc, roughen
from tests.text.test_tokenizer import captions

VOCABULARY, LENGTH, FIRST, SECOND, FEATURES, SIDE = 580, 16, 24, 32, 256, 8
SEED = 3
TEXT, UNET, WALK = 5e-6, 5e-6, 1e-4  # the limits, relative to the largest number
PROMPTS = ["a red apple", "a noto owl"]

TOWER = {
    "bos_token_id": 0,  # these three are wrong in the published folders, too
    "pad_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "num_hidden_layers": 3,
    "layer_norm_eps": 1e-5,
}
TOWERS = {
    "text_encoder": {"hidden_size": FIRST, "intermediate_size": 48, "num_attention_heads": 3, "projection_dim": 24}
    | {"hidden_act": "quick_gelu"},
    "text_encoder_2": {"hidden_size": SECOND, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 32}
    | {"hidden_act": "gelu"},
}
WIDE = {  # SD 2.1's tower
    "text_encoder": {"hidden_size": FIRST, "intermediate_size": 48, "num_attention_heads": 3, "projection_dim": 16}
    | {"hidden_act": "gelu"},
}
DOWN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": FEATURES, "use_linear_projection": True}
UNETS = {
    "base": ADDED
    | {
        "block_out_channels": [16, 32],
        "down_block_types": [DOWN, CROSS],  # and another in the published one: test_sdxl.py has all
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": FIRST + SECOND,
        "projection_class_embeddings_input_dim": SECOND + 6 * FEATURES,
    },
    "refiner": ADDED
    | {
        "block_out_channels": [16, 24, 32],
        "down_block_types": [DOWN, CROSS, DOWN],  # the middle attends, the level beside it does not
        "attention_head_dim": [2, 3, 4],
        "transformer_layers_per_block": 2,  # 4 in the published one, of one level more
        "cross_attention_dim": SECOND,
        "projection_class_embeddings_input_dim": SECOND + 5 * FEATURES,
    },
    "sd1": {
        "block_out_channels": [16, 32],
        "down_block_types": [CROSS, DOWN],
        "attention_head_dim": 8,
        "cross_attention_dim": FIRST,
    },
    "sd2": {
        "block_out_channels": [16, 32],
        "down_block_types": [CROSS, DOWN],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": FIRST,
        "use_linear_projection": True,
    },
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
LEADING = BETAS | {"timestep_spacing": "leading", "steps_offset": 1}


def scheduler(name: str, **settings):
    """A scheduler of diffusers, with the published settings."""
    return getattr(diffusers, f"{name}Scheduler")(**LEADING | settings)


def text_encoder(name: str, towers=TOWERS):
    kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    torch.manual_seed(len(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return roughen(kind(CLIPTextConfig(**TOWER | towers[name])), len(name))


def unet(kind: str, seed: int = 0, **settings):
    torch.manual_seed(seed)
    shape = {"sample_size": SIDE, "norm_num_groups": 8, "layers_per_block": 1} | UNETS[kind] | settings
    up = [block.replace("Down", "Up") for block in shape["down_block_types"][::-1]]
    return roughen(diffusers.UNet2DConditionModel(up_block_types=up, **shape), seed)


def vae():
    torch.manual_seed(5)
    blocks = {f"{way.lower()}_block_types": [f"{way}{'En' if way == 'Down' else 'De'}coderBlock2D"] * 4 for way in WAYS}
    shape = {"block_out_channels": [8, 16, 24, 24], "layers_per_block": 2, "norm_num_groups": 4, "latent_channels": 4}
    return roughen(diffusers.AutoencoderKL(**shape, **blocks, scaling_factor=0.13025, sample_size=64))


WAYS = ("Down", "Up")


def tokenizers(folder):
    """Both tokenizers: they differ in their padding, which is "!" in the second."""
    trained = train_bpe(captions(), VOCABULARY, folder / "bpe")
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    found = {}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        write_tokenizer_files(folder / name, model["vocab"], merges, pad, LENGTH)
        found[name] = CLIPTokenizer.from_pretrained(folder / name)
    return found


def saved(pipe, folder):
    """Saves a pipeline and lets it compute in float64; returns (pipeline, folder)."""
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.double()
    return pipe, folder


def xl(folder, kind="base", pipeline="StableDiffusionXLPipeline", noise=None, seed=0, zeros=None, **settings):
    """A pipeline of SDXL, saved in `folder`. settings: of the UNet."""
    parts = tokenizers(folder)
    refiner = kind == "refiner"
    parts |= {name: text_encoder(name) for name in TOWERS}
    if refiner:
        parts |= {"text_encoder": None, "tokenizer": None}
    if pipeline != "StableDiffusionXLPipeline":
        parts["requires_aesthetics_score"] = refiner
    pipe = getattr(diffusers, pipeline)(
        vae=vae(),
        unet=unet(kind, seed, **settings),
        scheduler=noise or scheduler("EulerDiscrete"),
        force_zeros_for_empty_prompt=not refiner if zeros is None else zeros,
        add_watermarker=False,
        **parts,
    )
    return saved(pipe, folder / "theirs")


def plain(folder, kind, pipeline, noise, towers, **settings):
    """A pipeline of one text tower, saved in `folder`."""
    pipe = getattr(diffusers, pipeline)(
        vae=vae(),
        text_encoder=text_encoder("text_encoder", towers),
        tokenizer=tokenizers(folder)["tokenizer_2" if kind == "sd2" else "tokenizer"],
        unet=unet(kind, **settings),
        scheduler=noise,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipe, folder / "theirs")


# ---- noise


def noise(seed: int, count: int, row: int | None = None, side: int = SIDE) -> np.ndarray:
    """What sdjax draws for `count` images of seeds from `seed` on: first, or in a row of the walk. [B, h, w, 4]."""
    keys = [jax.random.key(seed + i) for i in range(count)]
    keys = keys if row is None else [jax.random.fold_in(key, row) for key in keys]
    return np.stack([np.asarray(jax.random.normal(key, (side, side, 4))) for key in keys])


SCHEDULERS = ("euler_ancestral_discrete", "euler_discrete", "lcm", "ddim")
PIPELINES = ("xl_img2img", "xl_inpaint")


def draw_ours(patch, seed: int, rows) -> None:
    """diffusers draws sdjax's noise from now on: a picture's first draw, then row after row. Posteriors are means."""
    first = lambda shape, **_: nchw(noise(seed, shape[0]))
    later = lambda shape, **_: nchw(noise(seed, shape[0], next(rows)))
    for name in PIPELINES:
        module = f"diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_{name}"
        patch.setattr(f"{module}.randn_tensor", first)
    for name in SCHEDULERS:
        patch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", later)
    patch.setattr("diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample", lambda self, *_: self.mode())


@contextmanager
def one_thread():
    """Threads cost such small tensors more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(pipe, prompt, seed: int = SEED, rows=None, output_type="latent", **settings) -> np.ndarray:
    """The latents, or with "pt" the pixels in [-1, 1], of a pipeline of diffusers from our seed's noise: [B, h, w, C].

    rows: the numbers of the walk's rows, where another walk has had some of them.
    """
    count = len(prompt) if isinstance(prompt, list) else 1
    if "image" not in settings:
        settings = {"latents": nchw(noise(seed, count)), "height": 8 * SIDE, "width": 8 * SIDE} | settings
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), one_thread():
        draw_ours(patch, seed, rows or iter(range(1000)))
        found = nhwc(pipe(prompt, output_type=output_type, **settings).images).numpy()
    return found if output_type == "latent" else 2 * found - 1


def off(got, want) -> float:
    """max |difference| / max |reference|."""
    got, want = (np.asarray(value, np.float64) for value in (got, want))
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / np.abs(want).max())


def unet_peer(pipe, x, t: float, cond, ids, width: int = SECOND, **settings) -> np.ndarray:
    """The UNet of a pipeline in float64, given a Cond's context and pooled embedding, and the sizes as numbers."""
    exact = lambda value: torch.tensor(np.asarray(value)).double()
    given = {"text_embeds": exact(cond.vector[:, :width]), "time_ids": exact(ids)}
    with torch.no_grad(), one_thread():
        out = pipe.unet(nchw(x), t, exact(cond.context), added_cond_kwargs=given, **settings)
    return nhwc(out.sample).numpy()
