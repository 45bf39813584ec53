"""Folders of the SDXL family that we write, read by diffusers: the same weights, and what its pipelines go by."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from tests.parity.sdxl_models import scheduler, xl  # noqa: E402

pytestmark = pytest.mark.parity

TRAILING = {"timestep_spacing": "trailing"}
KINDS = {
    "base": xl,
    "refiner": partial(xl, kind="refiner", pipeline="StableDiffusionXLImg2ImgPipeline"),
    "inpaint": partial(xl, pipeline="StableDiffusionXLInpaintPipeline", in_channels=9),
    "sdxl-turbo": partial(xl, noise=scheduler("EulerAncestralDiscrete", **TRAILING)),
    "lcm": partial(xl, noise=scheduler("LCM"), time_cond_proj_dim=256),
}
FIELDS = (
    *("in_channels", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    *("time_cond_proj_dim", "cross_attention_dim", "use_linear_projection", "sample_size"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind, tmp_path):
    pipe, folder = KINDS[kind](tmp_path)
    sd = sdjax.load(folder)
    sdjax.save(sd, tmp_path / "ours")
    again = sdjax.load(tmp_path / "ours").config
    assert again == sd.config
    for name in ("guidance_scale", "zero_negative", "spacing", "pipeline", "size"):
        assert getattr(again, name) == getattr(sd.config, name), name

    found = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(found) is type(pipe)
    for name in ("force_zeros_for_empty_prompt", "requires_aesthetics_score"):
        assert found.config.get(name) == pipe.config.get(name), name
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        ours, theirs = getattr(found, name), getattr(pipe, name)
        assert (ours is None) == (theirs is None), name
        if theirs is None:
            continue
        assert type(ours) is type(theirs), name
        ours, theirs = ours.state_dict(), theirs.state_dict()
        assert ours.keys() == theirs.keys(), name
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key].numpy(), value.to(ours[key].dtype).numpy(), key)
    assert {name: found.unet.config[name] for name in FIELDS} == {name: pipe.unet.config[name] for name in FIELDS}
    assert found.vae.config.scaling_factor == pipe.vae.config.scaling_factor and found.vae.config.force_upcast
    if kind != "lcm":  # whose timesteps come from its own rule
        ours, theirs = (each.scheduler.config["timestep_spacing"] for each in (found, pipe))
        assert ours == theirs
    for name in ("tokenizer", "tokenizer_2"):
        if getattr(pipe, name):
            ours, theirs = (getattr(each, name)("a red apple", padding="max_length") for each in (found, pipe))
            assert ours["input_ids"] == theirs["input_ids"], name
