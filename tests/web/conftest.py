"""One server for the tests of this folder, with two narrow models and one of each file that requests may name."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

import sdjax
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.fields import write_control
from sdjax.networks.table import make_rows
from sdjax.text.bpe import train_bpe
from sdjax.weights.convert import to_file_tensors
from tests.loras import factors, sites
from tests.narrow import random_model_params, random_params
from tests.scripts import CONFIG
from tests.text.test_tokenizer import captions
from tests.web.serving import difference, serving

TWO = replace(CONFIG, name="two", size=16, vae=replace(CONFIG.vae, channels=(8, 8)))  # latents of 2 x 2 pixels


def parameters(config):
    """Random parameters with which a prompt changes the picture."""
    found = random_model_params(config)
    cross = {path: 30 * leaf if "cross" in path else leaf for path, leaf in flatten_dict(found["unet"]).items()}
    return found | {"unet": unflatten_dict(cross)}


def write_lora(path, config):
    rng, tensors = np.random.default_rng(0), {}
    for site in sites(config, ("unet",)):
        for end, value in factors("lora", site.shape, rng).items():
            tensors[f"lora_unet_{site.name.replace('.', '_')}.{end}"] = value
    write_tensors(path, tensors)


def write_net(folder, config):
    folder.mkdir()
    write_json(folder / "config.json", write_control(config))
    tensors = to_file_tensors(random_params(config), make_rows(config))
    write_tensors(folder / "diffusion_pytorch_model.safetensors", {name: 10 * v for name, v in tensors.items()})


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """A folder with `models`, `loras`, `controls` and `embeddings`."""
    house = tmp_path_factory.mktemp("house")
    tokenizer = train_bpe(captions(), CONFIG.text.vocab_size, house / "tokenizer")
    for name, config in (("two", TWO), ("model", CONFIG)):
        sdjax.save(sdjax.StableDiffusion(config, parameters(config), tokenizer), house / "models" / name)
    for name in ("loras", "controls", "embeddings"):
        (house / name).mkdir()
    write_lora(house / "loras" / "style.safetensors", TWO)
    write_net(house / "controls" / "net", ControlConfig(TWO.unet, (4, 6)))
    word = np.random.default_rng(1).normal(size=(2, TWO.text.width)).astype(np.float32)
    write_tensors(house / "embeddings" / "zorp.safetensors", {"emb_params": word})
    return house


@pytest.fixture(scope="session")
def served(house):
    """The server; its model is `two`."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    folders = {"loras": house / "loras", "controls": house / "controls", "embeddings": house / "embeddings"}
    with serving(house / "models" / "two", folder=house / "models", most_pixels=64 * 64, queue=20, **folders) as found:
        draw = lambda *words, **more: sdjax.txt2img(found.sd, *words, steps=3, guidance_scale=4, **more)[0]
        plain = draw("a red apple")
        assert min(difference(plain, one) for one in (draw("zorp"), draw("a red apple", negative_prompt="blue"))) > 8
        yield found
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def picture():
    pixels = np.random.default_rng(0).uniform(0, 255, (16, 16, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def mask():
    found = Image.new("L", (16, 16))
    found.paste(255, (4, 4, 12, 10))
    return found
