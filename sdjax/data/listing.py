"""Listings of data sets: names, captions, and how to open each picture. No picture is read here."""

import codecs
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from sdjax.data.columns import Column
from sdjax.data.picture import SUFFIXES, Unreadable, open_file
from sdjax.data.tars import read_shards
from sdjax.errors import SdjaxError

LINE = '{"file_name": "...", "text": "..."}'


@dataclass(frozen=True)
class Listing:
    """The pictures of a data set; row i is the i-th one."""

    files: Sequence[str]  # names in the data set
    paths: Sequence[str]  # names by which a person finds them
    texts: Sequence[str]
    open: Callable[[int], BinaryIO | Image.Image]  # raises Unreadable
    digest: str  # of what is known without reading pictures: names, sizes, times of change
    known: Mapping[int, str] = field(default_factory=dict)  # {row: reason} of those known to be bad already
    given: Sequence[Any] = ()  # of the column that was asked for: its value of each row, None of a bad one; or empty
    root: Path = Path()  # the folder that files named in columns are in
    repeats: Sequence[int] = ()  # how often an epoch has each picture; empty: once

    def __len__(self) -> int:
        return len(self.files)


def list_data(data: Any, index: Path | None = None, column: Column | None = None, captions: bool = True) -> Listing:
    """Returns the Listing of a data set.

    data: a folder with metadata.jsonl, a folder of .tar shards, one shard, a folder of pictures with captions in .txt
        files beside them, a folder of folders of pictures named as 20_sks dog (kohya's), or a `datasets.Dataset`.
    index: the folder that keeps the index of shards; None keeps none.
    column: a further column that each row must have; a folder's metadata.jsonl has columns, shards do not.
    captions: must each row have a caption? Otherwise a missing one is "".
    SdjaxError: `data` is none of these, or is broken.
    """
    if not isinstance(data, (str, Path)):
        return list_dataset(data, column, captions)
    root = Path(data)
    if (root / "metadata.jsonl").is_file():
        return list_folder(root, column, captions)
    if column is None and (folders := repeated_folders(root)):
        return list_repeated(root, folders)
    shards = sorted(root.glob("*.tar")) if root.is_dir() else [root] if root.suffix == ".tar" and root.is_file() else []
    if shards and column is not None:
        raise SdjaxError(
            f'data {data}: shards have no column "{column.name}"; a folder with metadata.jsonl that has it expected'
        )
    if shards:
        return list_shards(shards, index)
    pictures = sorted(path for path in root.iterdir() if path.suffix[1:].lower() in SUFFIXES) if root.is_dir() else []
    if pictures and column is not None:
        raise SdjaxError(
            f'data {data}: no metadata.jsonl there, which has the column "{column.name}" beside each picture\'s name'
        )
    if pictures and not (captions and not any(path.with_suffix(".txt").is_file() for path in pictures)):
        return list_beside(root, pictures, captions)
    there = "no such folder" if not root.exists() else "no metadata.jsonl, .tar shards or .txt captions there"
    raise SdjaxError(
        f"data {data}: {there}; expected a folder of pictures with a metadata.jsonl of one {LINE} a line, or with a "
        "picture.txt beside each picture.png, or img2dataset's shards"
    )


def metadata_lines(table: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Yields (line number, line, what it holds) of a metadata.jsonl without its blank lines; None for a torn line."""
    for number, line in enumerate(table.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            try:
                yield number, line, json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                yield number, line, None


def list_folder(root: Path, column: Column | None = None, captions: bool = True) -> Listing:
    """Lists the pictures in `root/metadata.jsonl`.

    A line that is torn, that is no object with "file_name" and "text", whose picture is missing, whose caption is not
    valid UTF-8 or whose `column` does not fit is listed as a bad row; its reason gives the line's number. SdjaxError:
    there are no lines, or none has the column.
    column, captions: see `list_data`.
    """
    table = root / "metadata.jsonl"
    if not table.is_file():
        raise SdjaxError(f"data {root}: no metadata.jsonl there; expected one {LINE} a line")
    files, paths, texts, known, given, digest, has_column = [], [], [], {}, [], hashlib.sha256(), False
    for number, line, record in metadata_lines(table):
        try:
            file, text = record["file_name"], record["text"] if captions else record.get("text") or ""
            if not (isinstance(file, str) and isinstance(text, str)):
                raise TypeError
            file.encode()  # JSON can hold half of a surrogate pair
        except (ValueError, KeyError, TypeError):
            known[len(files)] = f"expected {LINE}"
            digest.update(line)
            files.append(f"metadata.jsonl line {number}")
            paths.append(f"{table} line {number}")
            texts.append("")
            given.append(None)
            continue
        text = text.removeprefix("\ufeff")
        clean = text.encode("utf-8", "replace").decode()
        if line.decode("utf-8", "replace").encode() != line or clean != text:
            known[len(files)] = f"metadata.jsonl line {number}: its caption is not valid UTF-8"
        try:
            found = os.stat(root / file)
            regular = stat.S_ISREG(found.st_mode)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            found = None
        if found is None or not regular:
            known[len(files)] = f"metadata.jsonl line {number}: no such picture"
        digest.update(f"{file} {found and (found.st_size, found.st_mtime_ns)}\n".encode())
        given.append(None if column is None else record.get(column.name))
        has_column |= column is not None and column.name in record
        if column is not None and (wrong := unfit(root, column, record)):
            known.setdefault(len(files), f"metadata.jsonl line {number}: {wrong}")
        if column is not None and column.is_file:
            digest.update(f"{given[-1]}\n".encode("utf-8", "replace"))
        files.append(file)
        paths.append(str(root / file))
        texts.append(clean)
    if not files:
        raise SdjaxError(f"{table}: no pictures listed")
    if column is not None and not has_column and not column.optional:
        raise SdjaxError(f'{table}: no line has "{column.name}", which the pictures\' condition comes from')
    digest.update(repr(sorted(known)).encode())  # a repaired caption changes what is cached
    opened = lambda i: open_file(root / files[i])
    return Listing(tuple(files), paths, tuple(texts), opened, digest.hexdigest(), known, given if column else (), root)


def list_beside(root: Path, pictures: Sequence[Path], captions: bool = True) -> Listing:
    """Lists pictures whose captions are in .txt files of the same names; see `list_data`.

    A picture without one, or with one that is not UTF-8, is listed as a bad row, unless captions are not needed.
    """
    texts, known, digest = [], {}, hashlib.sha256()
    for i, path in enumerate(pictures):
        beside = path.with_suffix(".txt")
        text = ""
        try:
            text = " ".join(beside.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8").split())
        except FileNotFoundError:
            if captions:
                known[i] = f"no {beside.name} beside it, which would hold its caption"
        except (OSError, UnicodeDecodeError) as error:
            known[i] = f"{beside.name} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
        texts.append(text)
        found = path.stat()
        digest.update(f"{path.name} {(found.st_size, found.st_mtime_ns)} {text}\n".encode("utf-8", "replace"))
    names = [path.name for path in pictures]
    opened = lambda i: open_file(pictures[i])
    return Listing(names, [str(path) for path in pictures], texts, opened, digest.hexdigest(), known, (), root)


REPEATED = re.compile(r"(\d{1,4})_(.+)")  # kohya's names of folders: how often an epoch has each picture, a caption


def repeated_folders(root: Path) -> list[Path]:
    """Returns the folders in `root` that kohya's trainer would take pictures from."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and REPEATED.fullmatch(path.name))


def list_repeated(root: Path, folders: Sequence[Path]) -> Listing:
    """Lists the pictures in kohya's folders. A caption is that in a .txt or .caption file of the picture's name, else
    what the folder's name says. SdjaxError: there are no pictures."""
    files, texts, repeats, known, digest = [], [], [], {}, hashlib.sha256()
    for folder in folders:
        times, said = REPEATED.fullmatch(folder.name).groups()
        for path in sorted(path for path in folder.iterdir() if path.suffix[1:].lower() in SUFFIXES):
            own = [other for end in (".txt", ".caption") if (other := path.with_suffix(end)).is_file()]
            try:
                text = own[0].read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8") if own else said
            except (OSError, UnicodeDecodeError) as error:
                text = ""
                known[len(files)] = f"{own[0].name} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
            files.append(str(path.relative_to(root)))
            texts.append(" ".join(text.split()))
            repeats.append(max(1, int(times)))
            found = path.stat()
            digest.update(f"{files[-1]} {(found.st_size, found.st_mtime_ns)} {texts[-1]}\n".encode("utf-8", "replace"))
    if not files:
        raise SdjaxError(f"data {root}: no pictures in {folders[0].name}, nor in others named so")
    opened, paths = lambda i: open_file(root / files[i]), [str(root / name) for name in files]
    return Listing(files, paths, texts, opened, digest.hexdigest(), known, (), root, repeats)


def unfit(root: Path, column: Column, record: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a row's value of `column`, or None."""
    if column.name not in record:
        return None if column.optional else f'no "{column.name}"'
    value = record[column.name]
    try:
        column.check(value)
    except SdjaxError as error:
        said = str(error)
        return said if said.startswith(column.name) else f"{column.name} {said}"
    if column.is_file and not (root / value).is_file():
        return f"{column.name} {value!r}: no such file"
    return None


def list_shards(shards: Sequence[Path], index: Path | None = None) -> Listing:
    """Lists every picture of img2dataset's shards, in their order. Pictures are read from inside the shards.

    A picture's caption is the .txt beside it, else "caption" or "text" in its .json, else empty.
    """
    members = read_shards(shards, index)

    def open_member(i: int) -> BinaryIO:
        member = members[i]
        with open_file(member.shard) as file:
            try:
                file.seek(member.start)
                data = file.read(member.size)
            except OSError as error:
                raise Unreadable(f"its shard cannot be read ({error.strerror or error})") from None
        if len(data) != member.size:
            raise Unreadable("not a readable picture (its shard is cut off)")
        return io.BytesIO(data)

    known = {i: member.bad for i, member in enumerate(members) if member.bad}
    digest = hashlib.sha256(repr([(m.shard.name, *m[1:4]) for m in members]).encode())
    for shard in shards:
        digest.update(f"{shard.stat().st_mtime_ns}\n".encode())
    names = [f"{member.shard.name}/{member.name}" for member in members]
    paths = [f"{member.shard}/{member.name}" for member in members]
    return Listing(names, paths, [member.text for member in members], open_member, digest.hexdigest(), known)


def list_dataset(dataset: Any, column: Column | None = None, captions: bool = True) -> Listing:
    """Lists a `datasets.Dataset`, or any object with len, column_names, dataset[i][column] and dataset[column].

    Columns: "image" (else "jpg", "png", "webp", "img") and "text" (else "caption", "txt"). Pictures are Pillow images,
    bytes, paths, or {"bytes": ..., "path": ...}.
    column, captions: see `list_data`; a column of files is taken from folders alone.
    """
    try:
        columns, count = list(dataset.column_names), len(dataset)
    except (AttributeError, TypeError):
        raise SdjaxError(
            f"data is a {type(dataset).__name__}, should be a path or a datasets.Dataset (not a "
            "DatasetDict, nor an iterable one)"
        ) from None
    image = _column(columns, ("image", "jpg", "png", "webp", "img"))
    text = _column(columns, ("text", "caption", "txt")) if captions else None
    if not count:
        raise SdjaxError("data has no rows")
    texts, known = list(dataset[text]) if captions else [""] * count, {}
    given = [] if column is None else list(dataset[_column(columns, () if column.is_file else (column.name,))])
    for i, value in enumerate(given):
        if wrong := unfit(Path(), column, {column.name: value}):
            known[i] = wrong
    for i, value in enumerate(texts):
        if not isinstance(value, str):
            known[i], texts[i] = f"its {text} is {type(value).__name__}, not text", ""
    texts = [value.removeprefix("\ufeff") for value in texts]

    def open_row(i: int) -> BinaryIO | Image.Image:
        try:
            value = dataset[i][image]
        except Exception as error:  # dataset[i] decodes the picture
            raise Unreadable(f"not a readable picture ({' '.join(str(error).split())})") from None
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if isinstance(value, (str, Path)):
            return open_file(Path(value))
        raise Unreadable(f"not a readable picture (a {type(value).__name__})")

    names = [f"row {i}" for i in range(count)]
    stamp = getattr(dataset, "_fingerprint", None) or "\n".join(texts)
    digest = hashlib.sha256(f"{image} {count} {stamp}".encode("utf-8", "replace")).hexdigest()
    return Listing(names, names, texts, open_row, digest, known, given)


def _column(columns: list[str], usual: tuple[str, ...]) -> str:
    for name in usual:
        if name in columns:
            return name
    wanted = " or ".join(usual) or "a folder with metadata.jsonl, which names the files"
    raise SdjaxError(f"data has the columns {', '.join(columns)}, should have {wanted}")
