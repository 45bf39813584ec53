"""The example in sample/guide/training.md: the model of 64 pixels learns a word from the example pictures (slow)."""

import json
import shutil

import numpy as np
import pytest

import sdjax
from tests.scripts import EMOJI64, ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "tests" / "data" / "emoji300"
PROMPTS = [f"a zorp of a {thing} on a yellow background" for thing in ("red apple", "cactus", "hamburger", "sunflower")]


def test_a_new_word_for_a_style(script, tmp_path):
    """The loss on held-out pictures falls, the word draws what it is to mean, and old words still do."""
    shutil.copytree(EXAMPLES, tmp_path / "zorp")
    lines = [line for line in (EXAMPLES / "metadata.jsonl").read_text().splitlines() if "a noto emoji of" in line]
    (tmp_path / "zorp" / "metadata.jsonl").write_text("\n".join(lines).replace("a noto emoji of", "a zorp of"))
    for steps in (1, 41):  # the first step of a warm-up changes nothing: its loss is the bundled model's
        assert (
            script(
                "train/train_diffusion.py",
                "--data",
                tmp_path / "zorp",
                "--model",
                EMOJI64,
                "--out",
                tmp_path / "run",
                "--steps",
                steps,
                "--batch-size",
                16,
                "--learning-rate",
                1e-4,
                "--warmup",
                1,
                "--ema-decay",
                0.95,
                "--validation",
                30,
                "--sample-every",
                0,
            )
            == 0
        )
    records = {record["step"]: record for record in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())}
    first, last = records[1]["validation_loss"], records[41]["validation_loss"]
    assert records[1]["learning_rate"] == 0 and last < 0.9 * first, (first, last)
    before, after = sdjax.load(EMOJI64), sdjax.load(tmp_path / "run" / "export")
    draw = lambda sd, word: np.stack(
        [
            np.asarray(image, float)
            for image in sdjax.txt2img(
                sd, [prompt.replace("zorp", word) for prompt in PROMPTS], steps=20, guidance_scale=4.0
            )
        ]
    )
    distance = lambda a, b: np.abs(a - b).mean()
    noto, new = draw(before, "noto emoji"), draw(after, "zorp")
    far = distance(draw(before, "zorp"), noto)
    assert distance(new, noto) < 0.9 * far and distance(draw(after, "noto emoji"), noto) < 0.5 * far
