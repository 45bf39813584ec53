"""The index of img2dataset's .tar shards: where every picture lies, and its caption. Nothing is unpacked.

A shard 00000.tar holds 000000000.jpg, 000000000.json and 000000000.txt: what is equal up to the first dot belongs
together. A shard's index is read in one pass over its headers and kept as a file, by name, size and time of change.
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
from sdjax.files import whole

MAX_CAPTION = 1 << 20  # bytes of a .txt or .json


class Member(NamedTuple):
    """One picture of a shard."""

    shard: Path
    name: str
    start: int  # byte in the shard
    size: int  # bytes
    text: str
    bad: str | None  # why it cannot be used, when that is known already


def read_shards(shards: Sequence[Path], index: Path | None = None) -> list[Member]:
    """All pictures of the shards in order; SdjaxError naming a shard that is broken or has none."""
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
    """(name, start, size, text, bad) of every picture in the shard."""
    total, pictures, captions, names, twice = shard.stat().st_size, [], {}, set(), set()
    if not total:
        raise SdjaxError(f"{shard}: zero bytes; move it away")
    with open(shard, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, suffix = _split(member.name)
                    if not member.isreg() or not os.path.basename(key):  # macOS' tar writes a ._000.png beside each
                        continue
                    start, size = member.offset_data, member.size
                    if member.name in names:
                        twice.add(key)
                    names.add(member.name)
                    if suffix in SUFFIXES:
                        pictures.append((key, member.name, start, size))
                    elif suffix in ("txt", "json"):
                        file.seek(start)  # tarfile seeks by itself before it reads on
                        content = file.read(min(size, MAX_CAPTION))
                        captions.setdefault(key, {})[suffix] = content if len(content) == size else None
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if len(end) == tarfile.BLOCKSIZE and any(end):  # there tarfile would take damage for the end
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
        if key in twice:  # whose caption is whose?
            bad = "its name is in the shard twice"
        if start + size > total:
            bad = "not a readable picture (its shard is cut off)"
        rows.append((name, start, size, text, bad))
    return rows


def caption(parts: dict[str, bytes | None]) -> tuple[str, str | None]:
    """The caption among a picture's neighbours {"txt": bytes, "json": bytes}, and what is wrong with it."""
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
    """dir/000.x.jpg -> (dir/000, jpg): the key is what stands before the first dot, the kind after the last."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0]), base.rpartition(".")[2].lower()


def _load(path: Path) -> list | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # not there, or cut off
        return None


def _save(path: Path, rows: list[tuple]) -> None:
    with whole(path) as scratch:
        scratch.write_text(json.dumps(rows), encoding="utf-8")
