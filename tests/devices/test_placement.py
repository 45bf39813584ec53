"""What frozen networks compute is shared among the devices of a process: the same to the bit on one and on three."""

import os
import subprocess
import sys

from tests.scripts import ROOT

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import jax, numpy as np
import sdjax
from sdjax.conditioning import clip
from sdjax.data.source import open_data
from sdjax.devices import placement
from sdjax.tasks import safety
from sdjax.training import cache
from tests.narrow import NARROW, NARROW_VISION, random_model_params, random_params
from tests.text.test_tokenizer import captions
from sdjax.text.bpe import train_bpe

folder, data = Path(sys.argv[1]), Path(sys.argv[2])
text, vae = replace(NARROW.text, layers=1), replace(NARROW.vae, channels=(8,), blocks=1)
config = replace(NARROW, size=16, text=text, vae=vae)
sd = sdjax.StableDiffusion(config, random_model_params(config), train_bpe(captions(), 580, folder / "tokenizer"))
everywhere, rng = jax.local_devices(), np.random.default_rng(0)
assert len(everywhere) == 3
cache.CHUNK, cache.FILES, clip.PHRASES, safety.CHUNK = 4, 3, 4, 4
source = open_data(data, 16)
images = rng.uniform(-1, 1, (18, 64, 64, 3)).astype(np.float32)
directions = rng.normal(size=(20, 16)).astype(np.float32)
checker = safety.SafetyChecker(
    NARROW_VISION, random_params(NARROW_VISION), directions[:17], np.zeros(17), directions[17:], np.zeros(3)
)
projection = rng.normal(size=(24, 8)).astype(np.float32)
results, used, spread = [], [], placement.split_over
def split_over(tree, devices):
    used.append(len(devices))
    return spread(tree, devices)
placement.split_over = split_over
embeddings, decide = [], safety.decide
safety.decide = lambda checker, embedding: embeddings.append(embedding) or decide(checker, embedding)
for count in (1, 3):
    jax.local_devices = placement.jax.local_devices = lambda: everywhere[:count]
    used.clear()
    latents = cache.cached_latents(sd, source, folder / str(count))
    states, _ = cache.cached_states(sd, source.texts, folder / str(count))
    words = clip.embed_phrases(sd, [f"a {word} thing" for word in "abcdefghijklmnopqr"], projection)
    safety.check_safety(checker, images)
    assert max(used) == count, used
    results.append([latents.views[0][0][np.arange(40)], states[np.arange(len(states))], words, embeddings.pop()])
for one, three in zip(*results, strict=True):
    one, three = np.asarray(one), np.asarray(three)
    assert one.dtype == three.dtype and one.tobytes() == three.tobytes() and np.ptp(one.astype(np.float32)) > 0
"""


def test_latents_texts_phrases_and_the_checker_on_three_devices(tmp_path):
    script = [sys.executable, "-c", SCRIPT, tmp_path, ROOT / "tests" / "data" / "emoji300"]
    flags = {"JAX_NUM_CPU_DEVICES": "3", "JAX_PLATFORMS": "cpu", "SDJAX_CACHE": "off"}
    subprocess.run(script, cwd=ROOT, env=os.environ | flags, check=True)
