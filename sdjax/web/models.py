"""The models that the server has, and the files beside them: LoRAs, embeddings and controls of the options' folders.

Requests name all of these as the lists say them; a name is looked up among the files that are there and is never
opened as a path.
"""

import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

import sdjax
from sdjax.adapters.lora import forget
from sdjax.devices.placement import copy_over
from sdjax.errors import SdjaxError, log
from sdjax.model.load import find_source
from sdjax.model.value import StableDiffusion
from sdjax.tasks.networks import entries
from sdjax.weights.hashes import model_hash

FILES = (".safetensors", ".ckpt")
KEEP_CONTROLS = 4


class Models:
    """Loads models when they are asked for and keeps the last `keep` of them.

    `get` is for the thread that owns the devices; the other functions may be called from any.
    first: the model that is served if a request names none.
    """

    def __init__(
        self,
        first: str,
        folder: Path | None = None,
        keep: int = 1,
        embeddings: Path | None = None,
        loras: Path | None = None,
        controls: Path | None = None,
        dtype: str = "float32",
    ):
        self.first, self.folder, self.keep, self.dtype = first, folder, keep, dtype
        self.embeddings, self.loras, self.controls = embeddings, loras, controls
        self.lock, self.controls_lock = threading.RLock(), threading.Lock()
        self.kept: OrderedDict[str, StableDiffusion] = OrderedDict()
        self.controls_kept: OrderedDict[tuple, Any] = OrderedDict()
        self.skipped: set[str] = set()  # embeddings that are for other models
        self.sources: dict[str, str] = {}
        self.hashes: dict[str, str | None] = {}  # by source; None: it has none
        self.current = ""  # the title of the model that a request gets if it names none
        self.refresh()
        self.current = next(iter(self.sources))

    def refresh(self) -> None:
        """Looks for models again."""
        found = {title_of(self.first): self.first}
        if self.folder is not None:
            for path in sorted(self.folder.rglob("*")):
                inside = any((parent / "model_index.json").is_file() for parent in path.parents)
                is_model = (path / "model_index.json").is_file() or (path.is_file() and path.suffix.lower() in FILES)
                if is_model and not inside and str(path) != self.first:
                    found.setdefault(path.relative_to(self.folder).as_posix(), str(path))
        for title in (*self.kept, *([self.current] if self.sources else [])):  # files may go while they are served
            found.setdefault(title, self.sources[title])
        self.sources = found

    def find(self, name: str) -> str | None:
        """Returns the title of the model that a request names, by title, name or hash; None: there is none."""
        plain = name.partition(" [")[0].strip()
        for title in self.sources:
            known = {title, Path(title).name, name_of(title)}
            known_hash = self.hash_of(title, False)
            if name in known or plain in known or (known_hash is not None and known_hash in (name, name[:10])):
                return title
        return None

    def hash_of(self, title: str, compute: bool = True) -> str | None:
        """Returns a model's hash, or None. compute: False tells what is known already, at once."""
        source = self.sources[title]
        if compute and source not in self.hashes:
            self.hashes[source] = source_hash(source)
        return self.hashes.get(source)

    def loaded(self, title: str) -> StableDiffusion | None:
        """Returns a model that is loaded, or None."""
        with self.lock:
            return self.kept.get(title)

    def get(self, title: str) -> StableDiffusion:
        """Returns a model, loading it first if need be. SdjaxError: it cannot be loaded."""
        with self.lock:
            if title in self.kept:
                self.kept.move_to_end(title)
                return self.kept[title]
            while len(self.kept) >= self.keep:
                forget(self.kept.popitem(last=False)[1])
        sd = self.with_embeddings(sdjax.load(self.sources[title], dtype=self.dtype))
        sd = replace(sd, params=copy_over(sd.params, jax.local_devices()))
        with self.lock:
            self.kept[title] = sd
        return sd

    def with_embeddings(self, sd: StableDiffusion) -> StableDiffusion:
        """Returns a model with the words of the folder's embeddings that it has not yet and can read."""
        there = {word.lower() for word in sd.embeddings}
        for path in files_of(self.embeddings):
            if path.stem.lower() not in there:
                try:
                    sd = sdjax.add_embedding(sd, path)
                except SdjaxError as error:
                    self.skipped.add(path.stem)
                    log.warning("embedding %s", error)
        return sd

    def refresh_embeddings(self) -> None:
        """Looks for embeddings again, for the models that are loaded."""
        with self.lock:
            kept = list(self.kept.items())
        for title, sd in kept:  # files are read while others may ask for models
            if (found := self.with_embeddings(sd)) is not sd:
                with self.lock:
                    if self.kept.get(title) is sd:
                        self.kept[title] = found
                forget(sd)

    def networks(self) -> list[Path]:
        """Returns the files and folders of LoRAs."""
        return [] if self.loras is None else entries(self.loras)

    def control_files(self) -> dict[str, Path]:
        """Returns the controls by their names."""
        if self.controls is None:
            return {}
        folders = [path for path in sorted(self.controls.iterdir()) if (path / "config.json").is_file()]
        files = [path for path in files_of(self.controls) if path.suffix.lower() in (*FILES, ".pth", ".bin")]
        return {name_of(path.name): path for path in (*folders, *files)}

    def find_control(self, name: str) -> tuple[str, Path] | None:
        """Returns the name and the file of the control that a request names, perhaps with a hash behind it."""
        there = self.control_files()
        plain = name_of(name.partition(" [")[0].strip())
        return (plain, there[plain]) if plain in there else None

    def control(self, path: Path, sd: StableDiffusion) -> Any:
        """Returns a control for a model; the last few are kept. SdjaxError: it does not fit the model."""
        key = path, path.stat().st_mtime_ns, sd.config
        with self.controls_lock:
            if key not in self.controls_kept:
                self.controls_kept[key] = sdjax.load_control(path, sd)
                while len(self.controls_kept) > KEEP_CONTROLS:
                    self.controls_kept.popitem(last=False)
            self.controls_kept.move_to_end(key)
            return self.controls_kept[key]


def files_of(folder: Path | None) -> list[Path]:
    """Returns the files of weights in a folder, by name."""
    suffixes = (*FILES, ".pt", ".bin", ".pth")
    return [] if folder is None else [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes]


def title_of(source: str) -> str:
    """Returns how the list of models names what --model names: a file's or folder's own name, else the id."""
    return Path(source).name if Path(source).exists() else source


def name_of(title: str) -> str:
    """Returns a title without the ending of a file."""
    path = Path(title)
    return title.removesuffix(path.suffix) if path.suffix.lower() in (*FILES, ".pt", ".bin", ".pth") else title


def source_hash(source: str) -> str | None:
    with suppress(SdjaxError, OSError):
        return model_hash(find_source(source)[0])
    return None
