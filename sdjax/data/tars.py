"""The index of img2dataset's .tar shards: the position and the caption of every picture. Nothing is unpacked.

A shard 00000.tar holds 000000000.jpg, 000000000.json and 000000000.txt: files whose names are equal up to the first dot
belong together. A shard's index is made in one pass over its headers, and is kept in a file whose name depends on the
shard's name, size and time of change.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdjax.data.picture import SUFFIXES
from sdjax.errors import SdjaxError, log
from sdjax.files import written_whole

MAX_CAPTION = 1 << 20  # largest .txt or .json in bytes


class Member(NamedTuple):
    """One picture of a shard."""

    shard: Path
    name: str
    start: int  # offset in the shard in bytes
    size: int  # bytes
    text: str
    bad: str | None  # why it cannot be used, if that is known already


def read_shards(shards: Sequence[Path], index: Path | None = None) -> list[Member]:
    """Returns all pictures of the shards, in order.

    index: the folder that keeps the shards' indexes; None keeps none.
    SdjaxError: a shard is broken or has no pictures; the message names it.
    """
    members = []
    for shard in shards:
        found = shard.stat()
        stamp = hashlib.sha256(f"{shard.resolve()} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:16]
        kept = index / f"{shard.stem}-{stamp}.json" if index else None
        rows = _load(kept) if kept else None
        if rows is None:
            rows = index_shard(shard)
            if kept:
                _save(kept, rows)
        members += [Member(shard, *row) for row in rows]
    return members


def index_shard(shard: Path) -> list[tuple]:
    """Returns (name, start, size, text, bad) of every picture in the shard, see `Member`. SdjaxError: it has none."""
    total, pictures, captions, names, twice = shard.stat().st_size, [], {}, set(), set()
    if not total:
        raise SdjaxError(f"{shard}: zero bytes; move it away")
    with open(shard, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, suffix = _split(member.name)
                    if not member.isreg() or not os.path.basename(key):  # macOS' tar adds a ._000.png to each
                        continue
                    start, size = member.offset_data, member.size
                    if member.name in names:
                        twice.add(key)
                    names.add(member.name)
                    if suffix in SUFFIXES:
                        pictures.append((key, member.name, start, size))
                    elif suffix in ("txt", "json"):
                        file.seek(start)  # tarfile seeks again before it reads on
                        content = file.read(min(size, MAX_CAPTION))
                        captions.setdefault(key, {})[suffix] = content if len(content) == size else None
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if len(end) == tarfile.BLOCKSIZE and any(end):  # tarfile takes damage there for the end
                    raise tarfile.ReadError(f"damaged at byte {tar.offset}")
        except tarfile.TarError as error:
            end = b""
            if not pictures or not str(error).startswith(("unexpected end", "truncated")):
                raise SdjaxError(f"{shard}: not a whole .tar file ({error}); move it away or write it again") from None
    if len(end) < tarfile.BLOCKSIZE:
        log.warning("%s: is cut off; what came after %s is not there", shard, pictures[-1][1] if pictures else "byte 0")
    if not pictures:
        raise SdjaxError(f"{shard}: has no pictures in it")
    rows = []
    for key, name, start, size in pictures:
        text, bad = caption(captions.get(key, {}))
        if key in twice:  # it is unknown whose caption is whose
            bad = "its name is in the shard twice"
        if start + size > total:
            bad = "not a readable picture (its shard is cut off)"
        rows.append((name, start, size, text, bad))
    return rows


def caption(parts: dict[str, bytes | None]) -> tuple[str, str | None]:
    """Returns a picture's caption, and what is wrong with it or None.

    parts: the contents of the files beside the picture, {"txt": bytes, "json": bytes}; None for one that is too long.
    """
    try:
        if "txt" in parts:
            text = parts["txt"].decode("utf-8").strip()
        else:
            record = json.loads(parts.get("json", b"{}"))
            text = record.get("caption") or record.get("text") or ""
        text.encode("utf-8")
        return text, None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "", f"its caption in .{'txt' if 'txt' in parts else 'json'} is not valid"


def _split(name: str) -> tuple[str, str]:
    """dir/000.x.jpg -> (dir/000, jpg): the key is the part before the first dot, the suffix the part after the last."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0]), base.rpartition(".")[2].lower()


def _load(path: Path) -> list | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # missing, or cut off
        return None


def _save(path: Path, rows: list[tuple]) -> None:
    with written_whole(path) as scratch:
        scratch.write_text(json.dumps(rows), encoding="utf-8")
