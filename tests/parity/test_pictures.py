"""Models that are asked for by a picture, against diffusers: unCLIP and image variations, folders of ours both ways."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.conditioning.pictures import cosine_abar  # noqa: E402
from sdjax.families.table import family_of  # noqa: E402
from sdjax.networks.clip.config import NormalizerConfig  # noqa: E402
from tests.narrow import LIKE_SD15, LIKE_SD21, NARROW_VISION, random_params  # noqa: E402
from tests.parity.test_beside import PROMPTS, nchw, pipeline, saved  # noqa: E402
from tests.parity.test_ldm_pipeline import same  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH = NARROW_VISION.projection
UNCLIP = replace(
    LIKE_SD21,
    name="unclip",
    unet=replace(LIKE_SD21.unet, vector=2 * WIDTH),
    image=NARROW_VISION,
    normalizer=NormalizerConfig(WIDTH),
    guidance_scale=10.0,
)
VARIATIONS = replace(
    LIKE_SD15, name="variations", text=None, unet=replace(LIKE_SD15.unet, context_dim=WIDTH), image=NARROW_VISION
)
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 255, (50, 90, 3), dtype=np.uint8))


def test_unclip(tmp_path, monkeypatch):
    path = saved(UNCLIP, tmp_path)
    pipe, sd = pipeline("StableUnCLIPImg2ImgPipeline", path), sdjax.load(path)
    assert sd.config == replace(UNCLIP, name="ours") and sd.config.guidance_scale == 10.0
    assert np.abs(np.asarray(sd.params["normalizer"]["std"]) - 1).max() > 1e-3, "the statistics would not matter"
    np.testing.assert_allclose(cosine_abar(), pipe.image_noising_scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)
    pixels = pipe.feature_extractor(images=PICTURE, return_tensors="pt").pixel_values
    embedding = pipe.image_encoder(pixels).image_embeds
    for level in (0, 300):
        cond = sdjax.encode_picture(sd, PICTURE, level, seed=5)
        mean, std = (getattr(pipe.image_normalizer, name).detach() for name in ("mean", "std"))
        abar = pipe.image_noising_scheduler.alphas_cumprod[level].item()
        z = (torch.tensor(np.asarray(cond.vector))[:, :WIDTH] - mean) / std
        eps = (z - abar**0.5 * (embedding - mean) / std) / (1 - abar) ** 0.5
        theirs = pipe.noise_image_embeddings(embedding, level, noise=eps).detach().numpy()
        np.testing.assert_allclose(cond.vector, theirs, atol=2e-5)
        assert level == 0 or abs(float(eps.std()) - 1) < 0.5
    other = sdjax.encode_picture(sd, PICTURE, 300, seed=6).vector
    assert np.abs(other - cond.vector)[:, :WIDTH].max() > 1e-2
    monkeypatch.setattr(pipe, "noise_image_embeddings", lambda image_embeds, **_: torch.tensor(np.asarray(cond.vector)))
    noise = RNG.standard_normal((1, 8, 8, 4)).astype(np.float32)
    theirs = pipe(
        PICTURE, PROMPTS[0], height=64, width=64, num_inference_steps=10, guidance_scale=5.0, latents=nchw(noise)
    ).images
    both = sdjax.encode_prompt(sd, PROMPTS[0]) | cond
    same(sdjax.txt2img(sd, both, steps=10, guidance_scale=5.0, latents=noise, height=64, width=64), theirs)
    empty = sdjax.txt2img(sd, cond, steps=10, guidance_scale=5.0, latents=noise, output="latents")
    written = sdjax.txt2img(
        sd, sdjax.encode_prompt(sd, "") | cond, steps=10, guidance_scale=5.0, latents=noise, output="latents"
    )
    np.testing.assert_array_equal(empty, written)
    with pytest.raises(sdjax.SdjaxError, match="sd ours: takes a picture, give a Cond"):
        sdjax.txt2img(sd, PROMPTS, steps=2)
    pipe.save_pretrained(tmp_path / "theirs")
    assert sdjax.load(tmp_path / "theirs").config == replace(UNCLIP, name="theirs")


def test_variations(tmp_path):
    path = saved(VARIATIONS, tmp_path)
    pipe = pipeline("StableDiffusionImageVariationPipeline", path, safety_checker=None)
    sd = sdjax.load(path)
    assert sd.config == replace(VARIATIONS, name="ours") and family_of(sd.config).name == "sd-variations"
    noise = RNG.standard_normal((1, 8, 8, 4)).astype(np.float32)
    theirs = pipe(PICTURE, height=64, width=64, num_inference_steps=10, guidance_scale=5.0, latents=nchw(noise)).images
    cond = sdjax.encode_picture(sd, PICTURE)
    same(sdjax.txt2img(sd, cond, steps=10, guidance_scale=5.0, latents=noise, height=64, width=64), theirs)
    pipe.save_pretrained(tmp_path / "theirs")
    assert sdjax.load(tmp_path / "theirs").config == replace(VARIATIONS, name="theirs")


@pytest.mark.parametrize("config", [UNCLIP, VARIATIONS], ids=lambda config: config.name)
def test_single_files_both_ways(config, tmp_path):
    parts = {part: random_params(getattr(config, part)) for part in family_of(config).parts}
    sdjax.save(sdjax.StableDiffusion(config, parts, None), tmp_path / "one.safetensors")
    from sdjax.weights.single import read_single

    _, params = read_single(tmp_path / "one.safetensors", config=config)
    for part, tree in parts.items():
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(params[part]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_folder_of_text_alone_is_read_without_its_prior(tmp_path):
    import json

    path = saved(replace(UNCLIP, image=None), tmp_path)
    index = json.loads((path / "model_index.json").read_text())
    assert index["_class_name"] == "StableUnCLIPPipeline"
    (path / "model_index.json").write_text(json.dumps(index | {"prior": ["diffusers", "PriorTransformer"]}))
    sd = sdjax.load(path)
    assert family_of(sd.config).name == "sd-unclip-prior"
    vector = RNG.standard_normal((1, 2 * WIDTH)).astype(np.float32)
    cond = sdjax.encode_prompt(sd, PROMPTS[0])._replace(vector=vector)
    assert sdjax.txt2img(sd, cond, steps=2, output="latents").shape == (1, 8, 8, 4)
    with pytest.raises(sdjax.SdjaxError, match="pixels: ours takes no pictures"):
        sdjax.encode_picture(sd, PICTURE)
