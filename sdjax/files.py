"""Writes files whole or not at all, and turns the system's refusals into SdjaxErrors; also prompts files and locks."""

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from sdjax.errors import SdjaxError


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns any OSError inside the block into an SdjaxError that names `path`."""
    try:
        yield
    except OSError as error:
        raise SdjaxError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def written_whole(path: str | Path, mark: str | None = None) -> Iterator[Path]:
    """Yields a hidden file next to `path` to write to. It becomes `path` when the block ends, and is deleted if the
    block fails. Its folder is made if needed.

    mark: tells this writer's hidden file from other writers'. None makes a random mark, because hosts that share a
        folder may have the same process ids.
    SdjaxError: the system refuses to write `path`; mostly it refuses before the block begins.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}-{mark or uuid4().hex[:8]}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.touch()
            mode = scratch.stat().st_mode  # safetensors would leave a file that only its owner reads
            yield scratch
            os.chmod(scratch, mode)
            with open(scratch, "rb+") as file:
                os.fsync(file.fileno())  # else a crash may keep the new name and lose the content
            os.replace(scratch, path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def json_line(record: dict[str, Any]) -> str:
    """Returns a record as one line of a JSON Lines file, its line end included. Floats that JSON cannot say become null
    (RFC 8259 has no NaN and no infinity)."""
    lost = lambda value: isinstance(value, float) and not math.isfinite(value)
    record = {key: None if lost(value) else value for key, value in record.items()}
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with contextlib.suppress(UnicodeEncodeError):
        return line.encode().decode()
    return json.dumps(record, allow_nan=False) + "\n"  # a name with bytes that are not UTF-8 is written in escapes


def sha256_of_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_file(path: str | Path) -> str:
    """Returns 16 hexadecimal digits of a hash (SHA-256) of a file's bytes."""
    return sha256_of_file(path)[:16]


def check_folder(folder: str | Path) -> None:
    """Makes the folder and checks that files can be written in it. Call it before anything is computed. SdjaxError:
    they cannot."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(folder)):
        raise SdjaxError(f"out {folder}: a folder of this machine expected; buckets cannot be written to")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SdjaxError(f"out {folder}: cannot be written ({error.strerror})") from None


def read_prompts(path: str | Path) -> list[str]:
    """Returns the prompts in a UTF-8 text file with one prompt per line, as `str.splitlines` has lines.

    Blank lines are skipped, a line that begins with "#" is a prompt like any other, and byte order marks are left out.
    SdjaxError: the file cannot be read, is not UTF-8, has a NUL, or has no prompts.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SdjaxError(f"{path}: cannot be read ({error.strerror})") from None
    line_of = lambda head: len(f"{head}.".splitlines())
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SdjaxError(f"{path} line {line_of(data[: error.start].decode('utf-8'))}: not UTF-8") from None
    if "\0" in text:
        raise SdjaxError(f"{path} line {line_of(text[: text.index(chr(0))])}: a NUL is no letter, UTF-8 text expected")
    lines = [line.strip() for line in text.replace("\ufeff", "").splitlines()]
    if not (prompts := [line for line in lines if line]):
        raise SdjaxError(f"{path}: no prompts there; one a line expected")
    return prompts


def lock(file: int | IO, refusal: str) -> None:
    """Locks an open file or folder for this process until it is closed. It does nothing where locks are not supported.

    SdjaxError(refusal): another process has locked it.
    """
    with contextlib.suppress(ImportError):  # no fcntl on Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SdjaxError(refusal) from None
        except OSError:  # a file system without locks
            pass


def cut_torn_line(path: Path) -> None:
    """Removes what follows the last line break of a file: a line that a kill or a full disk left unfinished."""
    with open(path, "rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
