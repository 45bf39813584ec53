"""diffusers reads what we write, and we read what diffusers writes."""

import logging
from dataclasses import replace

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.text.bpe import train_bpe  # noqa: E402
from tests.narrow import NARROW, NARROW_V2, random_model_params  # noqa: E402
from tests.text.test_tokenizer import captions  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("config", [NARROW, NARROW_V2], ids=lambda config: config.name)
def test_our_folder_is_a_pipeline_and_theirs_a_model(config, tmp_path, caplog, capfd):
    tokenizer = train_bpe(captions(), 580, tmp_path / "tokenizer")
    sdjax.save(sdjax.StableDiffusion(config, random_model_params(config), tokenizer), tmp_path / config.name)
    sd = sdjax.load(tmp_path / config.name)  # SD 2 pads with "!", which a loaded tokenizer then reads as padding
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).propagate = True
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / config.name)
    said = caplog.text + "".join(capfd.readouterr())
    assert not any(word in said for word in ("newly initialized", "not used", "MISSING", "UNEXPECTED", "were not"))

    prompts = ["a red apple on the left", "", "a 😀 sailboat! " * 5]
    ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, max_length=config.text.length)["input_ids"]
    np.testing.assert_array_equal(sdjax.tokenize(sd, prompts), ids)
    with torch.no_grad():
        states = pipe.text_encoder(torch.tensor(ids))[0].numpy()
    np.testing.assert_allclose(sdjax.encode_prompt(sd, prompts, syntax="plain").context, states, atol=2e-5)
    assert pipe.scheduler.config.prediction_type == {"v": "v_prediction"}.get(config.schedule.prediction, "epsilon")

    pipe.save_pretrained(tmp_path / "theirs")
    again = sdjax.load(tmp_path / "theirs")
    assert again.config == replace(config, name="theirs")
    assert jax.tree.all(jax.tree.map(np.array_equal, sd.params, again.params))
