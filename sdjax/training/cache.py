"""Outputs of frozen networks for a whole data set, computed once and kept on disk: latents and text states.

A cache is a folder of about FILES .npy files. Each file is written whole or not at all, and is then mapped into memory:
a run that was killed continues with the next file, several processes share the files among them, and memory does not
grow with the data. The folder's name contains a digest of everything that the rows depend on: parameters, the dtype of
the computation, the data's listing, crops and rows, captions, tokenizer. Another model or listing never reads it.
"""

import errno
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.data.order import Chosen, read_ahead
from sdjax.data.picture import to_pixels
from sdjax.data.source import Pictures
from sdjax.devices.placement import on_all_devices
from sdjax.errors import SdjaxError, log
from sdjax.families.config import Config
from sdjax.files import written_whole
from sdjax.model.functions import states_and_pooled, text_states, vae_posterior
from sdjax.model.value import StableDiffusion, digest
from sdjax.text.tokenizer import tokenize_counted
from sdjax.types import Array, Params

CHUNK = 128  # at most so many rows go through a network at once

PIXELS = 1 << 21  # and at most so many pixels

STATES = 2  # grows when files of text states say more of their rows: since 2, how long captions are that were cut

FILES = 200  # about so many files in a cache: each stays open

#: Computes a file: (first row, the row after the last) -> pieces of (rows, {row: a number to keep beside it}). For
#: latents the number is the row of a stand-in, for text states the length of a caption that was cut.
Compute = Callable[[int, int], Iterable[tuple[np.ndarray, dict[int, int]]]]


class Rows:
    """The rows of a cache. rows[numbers] copies some out of the mapped files.

    notes: {row: a number}, see `Compute`.
    """

    def __init__(self, files: Sequence[np.ndarray], notes: dict[int, int]):
        self.files, self.notes, self.size = files, notes, len(files[0])

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty((len(numbers), *self.files[0].shape[1:]), self.files[0].dtype)
        for i, number in enumerate(numbers):
            found[i] = self.files[number // self.size][number % self.size]
        return found


class Latents:
    """The VAE's posterior of every picture.

    latents(chosen) returns the moments (mean and log variance, unscaled) as float16 [B, h, w, 8], and the rows [B] of
    the pictures that they belong to; these differ from chosen.rows where a bad picture has a stand-in.
    """

    def __init__(self, groups: Sequence[Sequence[int]], views: Sequence[Sequence[Rows]]):
        self.groups, self.views = [np.asarray(rows) for rows in groups], views

    def __call__(self, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
        places = np.searchsorted(self.groups[chosen.group], chosen.rows)
        sources = [self.views[epoch % len(self.views)][chosen.group] for epoch in chosen.epochs]
        moments = [rows[[place]] for rows, place in zip(sources, places, strict=True)]
        index = [rows.notes.get(int(row), int(row)) for rows, row in zip(sources, chosen.rows, strict=True)]
        return np.concatenate(moments), np.array(index)


def cached_latents(sd: StableDiffusion, source: Pictures, folder: Path, views: int = 1) -> Latents:
    """Returns the VAE's posterior of every picture, from the cache or computed now.

    folder: of all caches.
    views: each picture is encoded as the epochs 0 .. views - 1 crop and flip it; later epochs repeat these.
    SdjaxError: the VAE overflows, or too many pictures are bad.
    """
    config = sd.config.vae
    name = digest(sd.params["vae"], f"{config} {sd.dtype} {source.digest}")

    def rows_of(view: int, group: int) -> Rows:
        members, (height, width) = source.groups[group], source.shapes[group]
        chunk = max(1, min(CHUNK, PIXELS // (height * width), len(members)))
        shape = (height // config.factor, width // config.factor, 2 * config.latent_channels)

        def compute(start: int, stop: int) -> Iterator[tuple[np.ndarray, dict[int, int]]]:
            def read(k: int) -> list[dict[str, Any]]:
                chosen = members[start + k * chunk : min(start + (k + 1) * chunk, stop)]
                return [source.view(int(row), view, group) | {"row": int(row)} for row in chosen]

            waiting = []

            def chunks() -> Iterator[np.ndarray]:
                for items in read_ahead(read, stop=-(-(stop - start) // chunk)):
                    waiting.append(items)
                    yield to_pixels(np.stack([item["pixels"] for item in items + items[-1:] * (chunk - len(items))]))

            encode = lambda params, pixels: vae_posterior(params, pixels, config, sd.dtype)
            for moments in on_all_devices(encode, sd.params["vae"], chunks()):
                items = waiting.pop(0)
                with np.errstate(over="ignore"):
                    out = np.concatenate(moments, axis=-1)[: len(items)].astype(np.float16)
                for item, row in zip(items, out, strict=True):
                    if not np.isfinite(row).all():
                        lost = source.files[item["index"]]
                        raise SdjaxError(f"model: its VAE's latents of {lost} are not finite in float16")
                yield out, {item["row"]: item["index"] for item in items if item["row"] != item["index"]}

        kind = f"latents-{height}x{width}-{view}-{digest(np.asarray(members), name)}"
        return cached_rows(folder / kind, len(members), shape, compute, f"latents {height} x {width}")

    latents = [[rows_of(view, group) for group in range(len(source.groups))] for view in range(views)]
    for row in {row for groups in latents for rows in groups for row in rows.notes} - set(source.known):
        source.view(row)  # an earlier run or another process found it bad: this process has to know it too
    return Latents(source.groups, latents)


def cached_states(sd: StableDiffusion, texts: Sequence[str], folder: Path) -> tuple[Rows, np.ndarray]:
    """Returns the text states of all different captions, rows of float16, and the row of each of `texts`, [N].

    A row is [L, D]. Of a model of two text towers it is flat, see `split_states`.
    No character is special in captions, and those that are too long are cut.
    SdjaxError: states are not finite in float16.
    """
    config, second, unique = sd.config.text, sd.config.text_2, sorted(set(texts))
    towers = {"text": config} if second is None else {"text": config, "text_2": second}
    params = {name: sd.params[name] for name in towers}
    place = {text: i for i, text in enumerate(unique)}
    tokenizer = sd.tokenizer.backend_tokenizer.to_str() if hasattr(sd.tokenizer, "backend_tokenizer") else ""
    said = " ".join(map(str, towers.values()))
    name = digest(params, f"{said} {sd.dtype} {tokenizer} {json.dumps(unique)} {STATES}")
    shape = (config.length, config.width)
    if second is not None:
        shape = (config.length * (config.width + second.width) + second.projection,)

    def encode(params: Params, ids: list[Array]) -> list[Array]:
        found = [text_states(params["text"], ids[0], config, sd.dtype)]
        return found if second is None else [*found, *states_and_pooled(params["text_2"], ids[1], second, sd.dtype)]

    def compute(start: int, stop: int) -> Iterator[tuple[np.ndarray, dict[int, int]]]:
        chunk = min(CHUNK, len(unique))
        pieces = [unique[first : min(first + chunk, stop)] for first in range(start, stop, chunk)]
        most = config.length - 2
        read = [
            [tokenize_counted(sd.tokenizer, tower, piece + [""] * (chunk - len(piece))) for tower in towers.values()]
            for piece in pieces
        ]
        ids = ([ids for ids, _ in each] for each in read)
        for n, found in enumerate(on_all_devices(encode, params, ids)):
            long = {start + n * chunk + i: int(count) for i, count in enumerate(read[n][0][1]) if count > most}
            yield text_rows(found, pieces[n]), long

    rows = cached_rows(folder / f"states-{name}", len(unique), shape, compute, "text states")
    if rows.notes:
        log.warning(
            "captions: %d of %d different ones are cut: the text tower takes %d tokens, the longest one has %d",
            len(rows.notes),
            len(unique),
            config.length - 2,
            max(rows.notes.values()),
        )
    return rows, np.array([place[text] for text in texts])


def text_rows(found: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """Returns the rows of `texts` in a cache, from one tower's states, or from [states, the second's, its pooled]."""
    states, pooled = np.concatenate(found[:2], axis=-1), found[2:]
    rows = np.concatenate([part.reshape(len(part), -1) for part in (states, *pooled)], axis=1) if pooled else states
    with np.errstate(over="ignore"):
        rows = rows[: len(texts)].astype(np.float16)
    for text, row in zip(texts, rows, strict=True):
        if not np.isfinite(row).all():
            raise SdjaxError(f"model: its text states of {text[:80]!r} are not finite in float16")
    return rows


def split_states(config: Config, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows [B, K] of a cache of two text towers as (states [B, L, D + D'], pooled [B, P])."""
    pooled = config.text_2.projection
    return rows[:, :-pooled].reshape(len(rows), config.text.length, -1), rows[:, -pooled:]


def cached_rows(folder: Path, count: int, shape: tuple[int, ...], compute: Compute, what: str) -> Rows:
    """Returns `count` rows of float16 `shape` from the files in `folder`; computes files that are missing or damaged.

    Several processes share the work: each computes its files and waits for the others', so all must see one folder.
    what: the name of the rows in the progress bar.
    """
    from tqdm import tqdm

    size = CHUNK * -(-count // (CHUNK * FILES))
    starts = range(0, count, size)
    paths = [folder / f"{k:05d}.npy" for k in range(len(starts))]
    load = lambda k: _load(paths[k], (min(size, count - starts[k]), *shape))
    found = [load(k) for k in range(len(paths))]
    mine = [k for k in range(len(paths))[jax.process_index() :: jax.process_count()] if found[k] is None]
    if mine:
        rows = sum(min(size, count - starts[k]) for k in mine)
        with tqdm(total=rows, desc=what, disable=jax.process_index() > 0) as bar:
            for k in mine:
                _write(
                    paths[k],
                    (min(size, count - starts[k]), *shape),
                    compute(starts[k], min(starts[k] + size, count)),
                    bar.update,
                )
    for k in range(len(paths)):
        found[k] = load(k) if found[k] is None else found[k]
        while found[k] is None:
            if k in mine:
                raise SdjaxError(f"{paths[k]}: was written and cannot be read back")
            time.sleep(0.5)  # another process computes it; if that dies, JAX ends this one
            found[k] = load(k)
    notes = {int(row): index for _, one in found for row, index in one.items()}
    return Rows([rows for rows, _ in found], notes)


def _write(path: Path, shape: tuple[int, ...], pieces: Iterable[tuple[np.ndarray, dict]], progress: Callable) -> None:
    """Writes a .npy file of float16, with the notes as JSON after the array, which numpy ignores."""
    notes = {}
    with written_whole(path, mark=str(jax.process_index())) as scratch, open(scratch, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for rows, said in pieces:
            file.write(np.ascontiguousarray(rows).data)
            notes |= said
            progress(len(rows))
        file.write(json.dumps(notes).encode())


def _load(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[str, int]] | None:
    """Returns (the mapped rows, the notes), or None if the file is missing or damaged."""
    try:
        rows = np.load(path, mmap_mode="r")
        with open(path, "rb") as file:
            file.seek(rows.offset + rows.nbytes)
            notes = json.loads(file.read())
        return (rows, notes) if rows.shape == shape and rows.dtype == np.float16 else None
    except (OSError, ValueError, EOFError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):  # the file may be whole
            raise SdjaxError(f"{path}: {error.strerror}; `ulimit -n` raises how many a process may open") from None
        return None
