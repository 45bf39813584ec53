"""train/caption.py with a whole CLIP as transformers saves one: its ranking is transformers' own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from transformers import CLIPConfig, CLIPModel  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from sdjax.networks.clip.fields import FIELDS  # noqa: E402
from sdjax.text.bpe import train_bpe  # noqa: E402
from sdjax.text.tokenizer import load_tokenizer  # noqa: E402
from sdjax.weights.clip import load_clip_text  # noqa: E402
from tests.narrow import NARROW, NARROW_VISION  # noqa: E402
from tests.parity.peers import perturb  # noqa: E402
from tests.parity.test_safety import images  # noqa: E402
from tests.text.test_tokenizer import captions  # noqa: E402

pytestmark = pytest.mark.parity
VISION = replace(NARROW_VISION, projection=20)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(the folder, transformers' model)"""
    torch.manual_seed(0)
    folder, text = tmp_path_factory.mktemp("clip"), NARROW.text
    config = CLIPConfig(
        projection_dim=20,
        vision_config={theirs: getattr(VISION, ours) for ours, theirs in FIELDS.items()},
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "projection_dim": 20,
            "max_position_embeddings": text.length,
            "hidden_act": text.activation,
            "eos_token_id": 579,
        },
    )
    model = perturb(CLIPModel(config)).float().eval()
    model.save_pretrained(folder)
    train_bpe(captions(), text.vocab_size, folder, text.length)
    return folder, model


def test_the_ranking_is_transformers_own(clip, script, place):
    folder, model = clip
    phrases = captions()[:12]
    (place / "phrases.txt").write_text("\n".join(phrases))
    (place / "bare").mkdir()
    pictures = list(images(24))
    for i, picture in enumerate(pictures):
        picture.save(place / "bare" / f"{i:02d}.png")
    assert script("train/caption.py", "--data", "bare", "--phrases", "phrases.txt", "--clip", folder) == 0
    found = [json.loads(line) for line in (place / "bare" / "metadata.jsonl").read_text().splitlines()]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pixels = torch.cat(
        [processor(Image.open(place / "bare" / one["file_name"]), return_tensors="pt").pixel_values for one in found]
    )
    tokens = load_tokenizer(folder)(
        phrases, padding="max_length", max_length=NARROW.text.length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(input_ids=tokens.input_ids, pixel_values=pixels)
    cosine = (out.logits_per_image / model.logit_scale.exp()).numpy()
    assert [one["text"] for one in found] == [phrases[best] for best in cosine.argmax(1)]
    np.testing.assert_allclose([one["score"] for one in found], cosine.max(1), atol=6e-5)  # four digits
    assert len({one["text"] for one in found}) > 1, "the phrases are not told apart"


def test_a_text_tower_that_does_not_fit_is_refused(clip, script, place, capfd, tmp_path):
    folder, _ = clip
    assert load_clip_text(folder)[0] == replace(NARROW.text, activation="quick_gelu")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    (place / "phrases.txt").write_text("a cat")
    assert (
        script("train/caption.py", "--data", "pictures", "--phrases", "phrases.txt", "--clip", tmp_path, "--overwrite")
        == 2
    )
    assert "tensors do not fit the config" in capfd.readouterr().err
