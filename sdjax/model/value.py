"""One loaded model as a value."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks import DTYPES, SHORT
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.types import Params

FLOAT32 = jnp.dtype("float32")


class Added(NamedTuple):
    """A LoRA that was merged into a model."""

    lora: Any  # as sdjax/adapters/lora_files.py reads it
    weight: float  # of the UNet's changes
    text_weight: float  # of the text towers'


class Merged(NamedTuple):
    """What was merged into a model's parameters, by their paths. `sdjax.add_lora` merges anew from `base`."""

    added: tuple[Added, ...] = ()
    base: Mapping[tuple[str, ...], Any] = MappingProxyType({})  # the model's own leaves in place of those in `made`
    made: Mapping[tuple[str, ...], tuple[Any, tuple]] = MappingProxyType({})  # the merged leaves, and of what each is


def millions(params: Params) -> str:
    """Returns how many parameters there are, as "860 M"."""
    return f"{sum(map(np.size, jax.tree.leaves(params))) / 1e6:.3g} M"


def stored_in(params: Params) -> str:
    """Returns the names of the dtypes of parameters, as "float16/float32"."""
    return "/".join(sorted({np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(params)}))


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A loaded model. `sdjax.load` returns it.

    config: hashable.
    params: {"text", "unet", "vae"}, in the dtype that they were stored in.
    tokenizer: None if the model came without one.
    dtype: of the computation; norms, softmax and the time embedding are always float32.
    embeddings: words of prompts and the vectors [n, D] that stand for them, see `sdjax.add_embedding`.
    merged: the LoRAs that were merged into params, and what these were before, see `sdjax.add_lora`; None: none.
    """

    config: Config
    params: Params = field(repr=False)
    tokenizer: Any = field(repr=False)
    dtype: jnp.dtype = FLOAT32
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    merged: Merged | None = field(default=None, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "dtype", known_dtype(self.dtype))

    def __repr__(self) -> str:
        """One line; `config` has the rest."""
        parts = ", ".join(f"{part} {millions(tree)}" for part, tree in self.params.items())
        return (
            f"<StableDiffusion {self.config.name}: {self.config.size} px, {parts or 'no'} parameters in "
            f"{stored_in(self.params) or 'no'}, computes in {self.dtype.name}>"
        )


def known_dtype(dtype: Any) -> jnp.dtype:
    """Returns a dtype that models compute in, from itself or a name, fp16 and bf16 too. SdjaxError: any other."""
    with contextlib.suppress(TypeError):
        named = SHORT.get(dtype, dtype) if isinstance(dtype, str) else dtype
        if dtype is not None and (found := jnp.dtype(named)).name in DTYPES:
            return found
    raise SdjaxError(f"dtype is {dtype!r}, should be one of {', '.join(DTYPES)}")


def digest(params: Any, text: str = "") -> str:
    """Returns 16 hexadecimal digits of a hash (SHA-256) of the parameters' values and a text."""
    found = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return found.hexdigest()[:16]
