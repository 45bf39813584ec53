"""Single files of random parameters, for the tests of this folder."""

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from sdjax.weights.single import write_single
from tests.narrow import random_model_params


def same(a, b):
    whole = lambda x: (x.dtype, x.shape, np.asarray(x).tobytes())
    equal = lambda x, y: whole(x) == whole(y)
    return jax.tree.all(jax.tree.map(equal, a, b))


def written(path, config, change=None, dtype=np.float32, **options):
    """A single file of random parameters, its tensors changed by `change`; returns the parameters."""
    params = random_model_params(config, dtype=dtype)
    write_single(path, config, params)
    if change:
        tensors = load_file(path)
        save_file(change(tensors) or tensors, path)
    return params
