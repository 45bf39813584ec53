"""The published first stages of latent diffusion, by their configurations alone: parameters to the number."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sdjax.model.functions import vae_pixels, vae_posterior
from sdjax.networks.table import make_rows, param_shapes
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.network import nearest_codes
from tests.narrow import random_params


def published(multipliers, latents, attention=(), codes=None, **fields):
    """A CompVis yaml's ch_mult, embed_dim and attn_resolutions, which count from its resolution, 256."""
    levels = range(len(multipliers))
    return VAEConfig(
        channels=tuple(128 * multiplier for multiplier in multipliers),
        latent_channels=latents,
        attention=tuple(256 >> level in attention for level in levels) if attention else (),
        codes=codes,
        **fields,
    )


STAGES = {
    "kl-f4": (published((1, 2, 4), 3), 55_312_063),
    "kl-f8": (published((1, 2, 4, 4), 4), 83_653_863),
    "kl-f16": (published((1, 1, 2, 2, 4), 16, (16,)), 69_610_963),
    "kl-f32": (published((1, 1, 2, 2, 4, 4), 64, (16, 8)), 103_880_131),
    "kl-f4 of the x4 upscaler": (published((1, 2, 4), 4), 55_325_927),
    "vq-f4": (published((1, 2, 4), 3, codes=8192), 55_322_782),
    "vq-f4 without attention": (published((1, 2, 4), 3, codes=8192, middle_attention=False), 53_219_486),
    "vq-f8": (published((1, 2, 2, 4), 4, (32,), codes=16384), 67_717_295),
    "vq-f8-n256": (published((1, 2, 2, 4), 4, (32,), codes=256), 67_652_783),
    "vq-f16": (published((1, 1, 2, 2, 4), 8, (16,), codes=16384), 69_593_371),
}


@pytest.mark.parametrize("name", STAGES)
def test_parameters_and_names(name):
    config, count = STAGES[name]
    shapes = flatten_dict(param_shapes(config))
    assert sum(leaf.size for leaf in shapes.values()) == count
    rows = make_rows(config)
    assert {row.path for row in rows} == set(shapes)
    assert len({row.compvis for row in rows}) == len({row.diffusers for row in rows}) == len(rows)


VQ = VAEConfig(channels=(8, 16), blocks=1, latent_channels=3, groups=4, scaling=1.0, attention=(False, True), codes=11)


def test_a_vq_quantises_when_it_decodes():
    params, rng = random_params(VQ), np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    mean, logvar = vae_posterior(params, pixels, VQ)
    assert mean.shape == (2, 4, 4, 3) and (np.asarray(logvar) == -30).all()
    codes = np.asarray(params["decoder"]["codebook"])
    chosen = np.asarray(nearest_codes(codes, mean))
    distances = np.linalg.norm(np.asarray(mean)[..., None, :] - codes, axis=-1)
    np.testing.assert_array_equal(chosen, codes[distances.argmin(-1)])
    assert len(np.unique(distances.argmin(-1))) > 1 and np.abs(chosen - mean).max() > 1e-2
    np.testing.assert_array_equal(vae_pixels(params, mean, VQ), vae_pixels(params, chosen, VQ))
    near = jax.numpy.asarray(chosen) + 1e-4 * rng.normal(size=chosen.shape)
    np.testing.assert_array_equal(nearest_codes(codes, near), chosen)
