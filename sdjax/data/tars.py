"""The index of img2dataset's .tar shards: the position and the caption of every picture. Nothing is unpacked.

A shard 00000.tar holds 000000000.jpg, 000000000.json and 000000000.txt. A picture's own caption is the file with the
picture's stem, its name up to the last dot. WebDataset puts all files of a sample under one key, the name up to the
first dot: 0.mask.png beside 0.png is no picture of its own (`pictures_of`), and 0.meta.json is not 0.png's caption if
there is a 0.json. A shard's index is made in one pass over its headers, and is kept in a file whose name depends on the
shard's name, size and time of change, and on these rules (RULES).
"""

import codecs
import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from sdjax.data.picture import SUFFIXES
from sdjax.errors import SdjaxError, log
from sdjax.files import written_whole

MAX_CAPTION = 1 << 20  # largest .txt or .json in bytes

RULES = 2  # changes with the rules by which captions and pictures are found: an index of other rules is made anew


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
        stamp = hashlib.sha256(f"{shard.resolve()} {found.st_size} {found.st_mtime_ns} {RULES}".encode()).hexdigest()[
            :16
        ]
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
    total, images, captions, names, twice = shard.stat().st_size, [], {}, set(), set()
    if not total:
        raise SdjaxError(f"{shard}: zero bytes; move it away")
    with open(shard, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    stem, suffix = _split(member.name)
                    if not member.isreg() or os.path.basename(stem).startswith(
                        "."
                    ):  # macOS' tar adds a ._000.png to each
                        continue
                    start, size = member.offset_data, member.size
                    if member.name in names:
                        twice.add(stem)
                    names.add(member.name)
                    if suffix in SUFFIXES:
                        images.append((stem, member.name, start, size))
                    elif suffix in ("txt", "json"):
                        file.seek(start)  # tarfile seeks again before it reads on
                        content = file.read(min(size, MAX_CAPTION))
                        captions.setdefault(stem, {})[suffix] = content if len(content) == size else None
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if len(end) == tarfile.BLOCKSIZE and any(end):  # tarfile takes damage there for the end
                    raise tarfile.ReadError(f"damaged at byte {tar.offset}")
        except tarfile.TarError as error:
            end = b""
            if not images or not str(error).startswith(("unexpected end", "truncated")):
                raise SdjaxError(f"{shard}: not a whole .tar file ({error}); move it away or write it again") from None
    if len(end) < tarfile.BLOCKSIZE:
        log.warning("%s: is cut off; what came after %s is not there", shard, images[-1][1] if images else "byte 0")
    if not images:
        raise SdjaxError(f"{shard}: has no pictures in it")
    pictures = pictures_of([stem for stem, *_ in images], set(captions))
    if left := len(images) - len(pictures):
        lost = next(images[i][1] for i in range(len(images)) if i not in pictures)
        log.warning("%s: %d images belong to other pictures, as masks do, and are left out: %s ...", shard, left, lost)
    keys = Counter(_key(images[i][0]) for i in pictures)
    under: dict[str, list[str]] = {}
    for stem in captions:
        under.setdefault(_key(stem), []).append(stem)
    rows = []
    for stem, name, start, size in map(images.__getitem__, pictures):
        key, bad = _key(stem), None
        others = under.get(key, [])
        if stem in captions:
            text, bad = caption(captions[stem])
        elif not others:
            text = ""
        elif len(others) == 1 and keys[key] == 1:  # one picture and one caption under a key
            text, bad = caption(captions[others[0]])
        else:
            text, bad = "", f"no caption has its name, and {len(others)} captions are there for {keys[key]} pictures"
        if stem in twice:  # it is unknown whose caption is whose
            bad = "its name is in the shard twice"
        if start + size > total:
            bad = "not a readable picture (its shard is cut off)"
        rows.append((name, start, size, text, bad))
    return rows


def pictures_of(stems: Sequence[str], captioned: Collection[str]) -> list[int]:
    """Returns which images of a shard are pictures of their own, as places in `stems`.

    stems: the images' names without their suffixes; captioned: the stems of captions. An image a.b is left out if there
    is an image a and no caption a.b: it is a's mask, depth or the like.
    """
    known = set(stems)

    def extra(stem: str) -> bool:
        folder, base = os.path.split(stem)
        parts = base.split(".")
        return any(os.path.join(folder, ".".join(parts[:n])) in known for n in range(1, len(parts)))

    return [i for i, stem in enumerate(stems) if stem in captioned or not extra(stem)]


def caption(parts: dict[str, bytes | None]) -> tuple[str, str | None]:
    """Returns a picture's caption, and what is wrong with it or None.

    parts: the contents of the files beside the picture, {"txt": bytes, "json": bytes}; None for one that is too long.
    """
    try:
        if "txt" in parts:
            text = parts["txt"].decode("utf-8-sig").strip()
        else:
            record = json.loads(parts.get("json", b"{}").removeprefix(codecs.BOM_UTF8))
            text = record.get("caption") or record.get("text") or ""
        text = text.removeprefix("\ufeff")
        text.encode("utf-8")
        return text, None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "", f"its caption in .{'txt' if 'txt' in parts else 'json'} is not valid"


def _split(name: str) -> tuple[str, str]:
    """dir/000.x.jpg -> (dir/000.x, jpg): the stem and the suffix, which is the part after the last dot."""
    folder, base = os.path.split(name)
    stem, dot, suffix = base.rpartition(".")
    return (os.path.join(folder, stem), suffix.lower()) if dot else (name, "")


def _key(stem: str) -> str:
    """dir/000.x -> dir/000: WebDataset's key, the part before the first dot."""
    folder, base = os.path.split(stem)
    return os.path.join(folder, base.partition(".")[0])


def _load(path: Path) -> list | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # missing, or cut off
        return None


def _save(path: Path, rows: list[tuple]) -> None:
    with written_whole(path) as scratch:
        scratch.write_text(json.dumps(rows), encoding="utf-8")
