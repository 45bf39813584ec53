"""Hashes of files, by which other programs know a model again."""

import contextlib
import hashlib
import json
from functools import lru_cache
from pathlib import Path

from sdjax.devices.host import programs_folder
from sdjax.errors import SdjaxError
from sdjax.files import sha256_of_file, written_whole
from sdjax.weights.folder import FOLDERS, file_names, shard_names, weights_file

DIGITS, LORA_DIGITS = 10, 12  # of the SHA-256, as in AUTOMATIC1111's web UI


def model_hash(path: str | Path, variant: str | None = None) -> str | None:
    """Returns the first ten digits of the SHA-256 of a model's file; of a folder, of its UNet's file (the first shard
    of several). None: there is no such file.

    path: as `find_source` gives it. variant: see `sdjax.load`.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "unet"
        name = weights_file(file_names(folder), FOLDERS["unet"], variant) or ""
        if name.endswith(".json"):
            try:
                name = shard_names(folder / name)[0]
            except SdjaxError:
                return None
        path = folder / name
    return file_hash(path)[:DIGITS] if path.is_file() else None


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits.

    It is computed once for a path, a size and a time of writing, and kept in hashes.json beside the compiled programs.
    """
    path = Path(path).resolve()
    stat = path.stat()
    key, folder = [stat.st_size, stat.st_mtime_ns], programs_folder()
    kept = folder and Path(folder) / "hashes.json"
    known = read_hashes(kept)
    if (there := known.get(str(path))) and there[:2] == key:
        return there[2]
    found = sha256_of_file(path)
    if kept:
        with contextlib.suppress(SdjaxError), written_whole(kept) as scratch:  # it only saves time
            scratch.write_text(json.dumps(read_hashes(kept) | {str(path): [*key, found]}, indent=0), "utf-8")
    return found


def lora_hash(path: Path) -> str:
    """Returns the first twelve digits of a LoRA's hash, by which the web UI and model-sharing sites know it.

    It is the SHA-256 of what follows a safetensors file's header, so that other metadata change nothing (kohya's
    `addnet_hash_safetensors`), or of the whole of another file; of a folder, of the file of weights in it.
    """
    stat = path.stat()
    return _lora_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _lora_hash(path: Path, size: int, time: int) -> str:
    files = [
        path,
        *sorted(path.glob("*.safetensors")),
        *sorted(path.glob("*/*.safetensors")),
        *sorted(path.glob("*.bin")),
    ]
    path = next(file for file in files if file.is_file())
    found = hashlib.sha256()
    with open(path, "rb") as file:
        if path.suffix.lower() == ".safetensors":
            file.seek(8 + int.from_bytes(file.read(8), "little"))
        while part := file.read(2**22):
            found.update(part)
    return found.hexdigest()[:LORA_DIGITS]


def read_hashes(kept: Path | None) -> dict[str, list]:
    """Returns what hashes.json holds, path -> [size, time, hash], without what is broken in it."""
    try:
        found = json.loads(kept.read_text("utf-8")) if kept else {}
    except (OSError, ValueError):
        return {}
    whole = lambda entry: isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], str)
    return {path: entry for path, entry in found.items() if whole(entry)} if isinstance(found, dict) else {}
