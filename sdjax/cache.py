"""What frozen networks say about a data set, computed once and kept on disk: latents and text states.

A cache file's name carries a digest of the parameters and of the data's listing, so that another model or another
listing never reads it.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.data import ImageFolder, to_pixels
from sdjax.errors import SdjaxError
from sdjax.model import encode_prompt, vae_moments

CHUNK = 128


def cached_latents(sd, source: ImageFolder, folder: Path) -> np.ndarray:
    """float16 [N, h, w, 8]: the VAE posterior's mean and log variance of every picture, unscaled."""
    listing = "\n".join(f"{file} {(source.root / file).stat().st_size}" for file in source.files)
    path = folder / f"latents-{_digest(sd.params['vae'], f'{source.size} {listing}')}.npy"

    def chunks():
        for first in range(0, len(source), CHUNK):
            rows = [source[i]["pixels"] for i in range(first, min(first + CHUNK, len(source)))]
            count = len(rows)
            pixels = to_pixels(np.stack(rows + rows[-1:] * (CHUNK - count)))
            yield np.concatenate(vae_moments(sd, pixels), axis=-1)[:count].astype(np.float16)

    return _load_or_make(path, chunks, -(-len(source) // CHUNK), "latents")


def cached_states(sd, texts: Sequence[str], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Text states of every different caption, float16 [U, L, D], and each text's row in them, [N]."""
    unique, rows = np.unique(np.asarray(texts, dtype=object).astype(str), return_inverse=True)
    path = folder / f"states-{_digest(sd.params['text'], chr(10).join(unique))}.npy"

    def chunks():
        for first in range(0, len(unique), CHUNK):
            prompts = unique[first : first + CHUNK].tolist()
            filled = prompts + [""] * (CHUNK - len(prompts))
            yield np.asarray(encode_prompt(sd, filled, syntax="plain").context)[: len(prompts)].astype(np.float16)

    return _load_or_make(path, chunks, -(-len(unique) // CHUNK), "text states"), rows


def _load_or_make(path: Path, chunks, total: int, what: str) -> np.ndarray:
    from tqdm import tqdm

    if not path.is_file():
        scratch = path.with_suffix(".tmp.npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(scratch, np.concatenate(list(tqdm(chunks(), total=total, desc=what))))
            os.replace(scratch, path)
        except OSError as error:
            raise SdjaxError(f"{path}: cannot be written ({error.strerror})") from None
    return np.load(path)


def _digest(params: Any, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
