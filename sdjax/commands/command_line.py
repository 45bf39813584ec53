"""Command lines from dataclasses: one line on standard error and exit status 2 for whatever is refused."""

import contextlib
import ctypes
import gc
import io
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from sdjax.errors import SdjaxError, out_of_memory

Options = TypeVar("Options")


def parse(options: type[Options], description: str, default: Options | None = None) -> Options:
    """Reads sys.argv into the dataclass `options`; tyro's error box becomes one line, exit status 2.

    `default`: an instance whose values stand where the command line says nothing.
    """
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(options, description=description, **({} if default is None else {"default": default}))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        refuse(_one_line(captured.getvalue()))


def run(main: Callable[[Options], None], options: type[Options],
        defaults: Callable[[Options], Options | None] | None = None) -> None:
    """Parses, calls `main`, and turns every refusal into one line and exit status 2.

    defaults(parsed) may return other defaults, which options on the command line override.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found" is no news here
    gc.set_threshold(50_000)  # imports and traces make millions of objects that stay: looking through them took a tenth
    parsed = parse(options, main.__doc__ or "")
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        if defaults and (default := defaults(parsed)) is not None:
            parsed = parse(options, main.__doc__ or "", default)
        if getattr(parsed, "cache", True):
            keep_programs()
        main(parsed)
    except (SdjaxError, OSError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        refuse(f"the device's memory does not hold this ({' '.join(str(error).split())[:300]}); fewer or smaller "
               "pictures at once and --dtype bfloat16 take less")
    finally:
        for name, handler in handlers.items():  # training sets its own
            signal.signal(name, handler)


def keep_programs() -> None:
    """Compiled programs stay on disk, for the next process: in the folder that SDJAX_CACHE names, or ~/.cache/sdjax;
    nowhere where SDJAX_CACHE is "off", or where JAX was told a folder of its own (JAX_COMPILATION_CACHE_DIR)."""
    folder = os.path.expanduser(os.environ.get("SDJAX_CACHE") or "~/.cache/sdjax")
    if folder == "off" or folder.startswith("~") or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    for name, value in {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.1}.items():
        if not os.environ.get(name.upper()):
            os.environ[name.upper()] = str(value)  # read when JAX is imported, which a refusal need not wait for
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(name, value)


def open_more_files() -> None:
    """Up to the system's limit of open files instead of the shell's, often 1,024: the files of caches stay open."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such module on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@cache
def return_memory() -> None:
    """From now on the system gets back what compiling took: glibc keeps it, more than 1 GB after SD 1.5's UNet."""
    import jax

    def trim(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration") and seconds > 1:
            with contextlib.suppress(OSError, AttributeError):  # another C library
                ctypes.CDLL("libc.so.6").malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def refuse(message: str) -> None:
    """Prints `error: message` in one line and leaves with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """What is refused in here says first which flag it is about."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(f"{prefix}{error}") from None


@contextlib.contextmanager
def flags_of(names: Iterable[str]) -> Iterator[None]:
    """What is refused in here by an argument's name says the flag's."""
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(re.sub(r"^\w+", lambda m: flags.get(m[0], m[0]), str(error))) from None


def check_folder(folder: str | Path) -> None:
    """Makes the folder and writes a file in it, or raises SdjaxError: to be called before anything is computed."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SdjaxError(f"--out {folder}: cannot be written ({error.strerror})") from None


class Progress:
    """A bar with the time left, on standard error from the first call on, so that a refusal stays alone on its line."""

    def __init__(self, unit: str):
        self.unit, self.bar = unit, None

    def __call__(self, done: float, total: int) -> None:
        """`done` of `total`, counted from the first call on; fractions count."""
        if self.bar is None:
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} " + self.unit + "s [{elapsed}<{remaining}]"
            self.bar = tqdm(total=total, bar_format=form, initial=done)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.bar.close()


def _one_line(box: str) -> str:
    """The sentences inside tyro's box: without escapes, borders, its title and the hint below its rule."""
    text = re.split(r"\n│ ─+ │\n", re.sub(r"\x1b\[[0-9;]*m", "", box))[0]
    lines = [line for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sentence = " ".join(" ".join(re.sub(r"[─-╿]+", " ", line) for line in lines).split())
    return sentence or "the command line could not be read: see --help"
