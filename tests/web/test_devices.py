"""A server of several devices: every picture is the one that a lone device draws."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

import sdjax
from tests.scripts import ROOT
from tests.web.serving import difference, opened, serving

ASKED = [
    {"prompt": prompt, "seed": seed, "steps": 3, "cfg_scale": 4} for seed, prompt in enumerate(("a red apple", "a cat"))
]
ASKED += [ASKED[0] | {"batch_size": 3, "seed": 7}]


def draw(folder, out):
    """For a process of its own: asks a server of all its devices for ASKED, all at once, and saves the pictures."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    with serving(f"{folder}/two", folder=Path(folder)) as served, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda body: served.post("/sdapi/v1/txt2img", body), ASKED))
        metrics = served.service.metrics
        np.savez(
            out,
            *[np.asarray(opened(image)) for answer in answers for image in answer["images"]],
            devices=jax.local_device_count(),
            drawn=sum(size * times for size, times in metrics.batches.items()),
        )


def test_three_devices(house, tmp_path):
    script = "import sys; from tests.web.test_devices import draw; draw(*sys.argv[1:])"
    flags = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=3"}
    command = [sys.executable, "-c", script, house / "models", tmp_path / "found.npz"]
    subprocess.run(command, cwd=ROOT, env=os.environ | flags | {"JAX_PLATFORMS": "cpu"}, check=True)
    found = np.load(tmp_path / "found.npz")
    assert found["devices"] == 3 and found["drawn"] == 5
    sd, number = sdjax.load(house / "models" / "two"), 0
    for body in ASKED:
        for seed in range(body["seed"], body["seed"] + body.get("batch_size", 1)):
            own = {"steps": 3, "guidance_scale": 4, "sampler": "euler", "seed": seed}
            (alone,) = sdjax.txt2img(sd, body["prompt"], **own)
            assert difference(Image.fromarray(found[f"arr_{number}"]), alone) <= 1
            number += 1
