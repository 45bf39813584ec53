"""SDXL against diffusers' pipeline: the same tiny folder, single file and folder, and mistakes that would be seen."""

from dataclasses import replace

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.families.sdxl import SDXL  # noqa: E402
from sdjax.families.table import family_of  # noqa: E402
from sdjax.text.bpe import train_bpe  # noqa: E402
from tests.narrow import LIKE_SD15, random_params  # noqa: E402
from tests.parity.test_beside import PROMPTS, RNG, nchw, pipeline  # noqa: E402
from tests.parity.test_ldm_pipeline import same  # noqa: E402
from tests.text.test_tokenizer import captions  # noqa: E402

pytestmark = pytest.mark.parity

TEXT = replace(LIKE_SD15.text, back=1)
TINY = replace(
    SDXL,
    name="tiny-sdxl",
    text=TEXT,
    text_2=replace(TEXT, width=32, heads=4, mlp_width=64, activation="gelu", pad_token=0, projection=20),
    vae=replace(LIKE_SD15.vae, scaling=0.13025),
    unet=replace(
        SDXL.unet,
        channels=(16, 24, 32),
        heads=(2, 3, 4),
        context_dim=56,
        depth=(1, 2, 3),
        groups=8,
        vector=20 + 6 * 256,
    ),
    size=64,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    parts = {part: random_params(getattr(TINY, part), i) for i, part in enumerate(family_of(TINY).parts)}
    sdjax.save(sdjax.StableDiffusion(TINY, parts, train_bpe(captions(), 580, folder / "tokenizer")), folder / "ours")
    return folder / "ours"


@pytest.fixture(scope="module")
def both(folder):
    return pipeline("StableDiffusionXLPipeline", folder), sdjax.load(folder)


def off(got, want) -> float:
    want = want.detach().numpy() if hasattr(want, "detach") else want
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def encoded(pipe, prompt, prompt_2=None):
    """diffusers' context, pooled embedding and sizes."""
    states, _, pooled, _ = pipe.encode_prompt(prompt, prompt_2, device="cpu", do_classifier_free_guidance=False)
    return states, pooled


def test_the_folder_says_what_the_model_is(folder, both):
    pipe, sd = both
    assert sd.config == replace(TINY, name="ours") and sd.config.zero_negative and sd.config.guidance_scale == 5.0
    assert (
        type(pipe.text_encoder_2).__name__ == "CLIPTextModelWithProjection" and pipe.config.force_zeros_for_empty_prompt
    )


@pytest.mark.parametrize("prompt_2", [None, ["an owl", "owls"]])
def test_encoded_prompts(both, prompt_2):
    pipe, sd = both
    states, pooled = encoded(pipe, PROMPTS, prompt_2)
    cond = sdjax.encode_prompt(
        sd, PROMPTS, prompt_2=prompt_2, original_size=(1001, 700), crop=(3, 5), target_size=(64, 96)
    )
    assert off(cond.context, states) < 5e-6
    assert off(cond.vector[:, :20], pooled) < 5e-6
    ids = torch.tensor([[1001, 700, 3, 5, 64, 96]]).double()
    features = pipe.unet.add_time_proj(ids.flatten()).reshape(1, -1)
    np.testing.assert_allclose(cond.vector[0, 20:], features[0], atol=1e-4)  # torch's sinusoids are float32


def test_the_unet(both):
    pipe, sd = both
    x = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)
    cond = sdjax.encode_prompt(sd, PROMPTS, original_size=(100, 700))
    ours = sdjax.predict(sd, x, 501.0, cond)
    ids = torch.tensor([[100.0, 700, 0, 0, 64, 64]] * 2).double()
    unet = pipe.unet.double()
    pooled = torch.tensor(np.asarray(cond.vector[:, :20])).double()
    given = {"text_embeds": pooled, "time_ids": ids}
    context = torch.tensor(np.asarray(cond.context)).double()
    theirs = unet(nchw(x).double(), 501, context, added_cond_kwargs=given).sample.detach().numpy().transpose(0, 2, 3, 1)
    pipe.unet.float()
    assert off(ours, theirs) < 5e-6
    swapped = cond._replace(vector=np.concatenate([cond.vector[:, :20], np.roll(cond.vector[:, 20:], 256, 1)], 1))
    assert off(sdjax.predict(sd, x, 501.0, swapped), theirs) > 1e-3
    halves = cond._replace(context=np.roll(cond.context, 24, -1))
    assert off(sdjax.predict(sd, x, 501.0, halves), theirs) > 1e-3


@pytest.mark.parametrize("negative", [None, "an owl", ""])
def test_pictures(both, negative):
    """diffusers zeroes None and encodes ""; here "" is zeros, and an encoded "" may be given as a Cond."""
    pipe, sd = both
    noise = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)
    theirs = pipe(
        PROMPTS,
        negative_prompt=negative if negative is None else [negative] * 2,
        height=64,
        width=64,
        num_inference_steps=10,
        guidance_scale=5.0,
        latents=nchw(noise),
    ).images
    ours = negative or ("" if negative is None else sdjax.encode_prompt(sd, ""))
    same(sdjax.txt2img(sd, PROMPTS, negative_prompt=ours, steps=10, latents=noise), theirs)


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("the last layer", {"back": 0}),
        ("one layer earlier", {"back": 2}),
        ("the other padding", {"pad_token": 579}),
    ],
)
def test_mistakes_in_the_second_tower_are_seen(both, name, mistake):
    pipe, sd = both
    states, _ = encoded(pipe, PROMPTS)
    wrong = replace(sd, config=replace(sd.config, text_2=replace(sd.config.text_2, **mistake)))
    assert off(sdjax.encode_prompt(wrong, PROMPTS).context, states) > 1e-2


def test_the_pooled_embedding_is_that_of_the_first_chunk(both):
    sd, words = both[1], "a red apple, "
    long = sdjax.encode_prompt(sd, words * 9)
    assert long.context.shape[1] > 12 and long.vector.shape == (1, 20 + 1536)
    other = sdjax.encode_prompt(sd, words * 8 + "owl")
    np.testing.assert_allclose(other.vector, long.vector, atol=1e-6)


def test_a_single_file_equals_its_folder(folder, both, tmp_path, monkeypatch):
    from sdjax.weights import single

    _, sd = both
    sdjax.save(sd, tmp_path / "one.safetensors")
    monkeypatch.setattr(single, "CANDIDATES", (*single.CANDIDATES, TINY))
    found = sdjax.load(tmp_path / "one.safetensors")
    assert found.config == TINY and found.config.zero_negative
    for part, tree in sd.params.items():
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(found.params[part]), strict=True):
            np.testing.assert_array_equal(a, b)
