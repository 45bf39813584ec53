"""Clip skip and textual inversion against diffusers on a narrow random model."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.text.bpe import train_bpe  # noqa: E402
from tests.narrow import NARROW, random_model_params  # noqa: E402
from tests.text.test_tokenizer import captions  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    tokenizer = train_bpe(captions(), 580, root / "tokenizer")
    sdjax.save(sdjax.StableDiffusion(NARROW, random_model_params(NARROW), tokenizer), root / "model")
    return root / "model"


def states(pipe, prompt):
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0].numpy()


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip(folder, skip):
    """As in pipe.encode_prompt(clip_skip=skip - 1), which fails with transformers 5: it looks for `text_model`."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    tower = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    ids = pipe.tokenizer("a red apple", padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
        theirs = tower.final_layer_norm(hidden[-skip]).numpy()
    ours = sdjax.encode_prompt(sdjax.load(folder), "a red apple", clip_skip=skip).context
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    other = sdjax.encode_prompt(sdjax.load(folder), "a red apple", clip_skip=3 - skip).context
    assert np.abs(other - theirs).max() > 1e-2


@pytest.mark.parametrize("layout", ["diffusers", "web UI"])
@pytest.mark.parametrize("count", [1, 3])
def test_textual_inversion(folder, layout, count, tmp_path):
    pipe, sd = diffusers.StableDiffusionPipeline.from_pretrained(folder), sdjax.load(folder)
    vectors = torch.randn(count, 24, generator=torch.Generator().manual_seed(0))
    if layout == "diffusers":
        torch.save({"<mine>": vectors if count > 1 else vectors[0]}, tmp_path / "mine.bin")
    else:
        torch.save(
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": torch.nn.Parameter(vectors)},
                "name": "mine",
                "step": 500,
            },
            tmp_path / "mine.bin",
        )
    pipe.load_textual_inversion(str(tmp_path / "mine.bin"), token="<mine>")
    sd = sdjax.add_embedding(sd, tmp_path / "mine.bin", token="<mine>")
    for prompt in ("a <mine> on the left", "<mine>"):
        np.testing.assert_allclose(sdjax.encode_prompt(sd, prompt).context, states(pipe, prompt), atol=2e-5)
