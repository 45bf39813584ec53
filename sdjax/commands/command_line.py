"""Command lines made from dataclasses. Every refusal is one line on standard error and exit status 2."""

import contextlib
import gc
import io
import logging
import os
import platform
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import TypeVar

from sdjax.checks import SHORT
from sdjax.devices.host import keep_programs
from sdjax.errors import SdjaxError, did_you_mean, log, out_of_memory, with_flags

Options = TypeVar("Options")


def parse(
    options: type[Options],
    description: str,
    default: Options | None = None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> Options:
    """Reads a command line into the dataclass `options`. tyro's error box becomes one line and exit status 2.

    description: the text of --help.
    default: an instance with the values of options that the command line leaves out; None: the dataclass' own.
    arguments: None takes sys.argv's.
    program: the command's name in --help.
    """
    import tyro

    from sdjax.commands.groups import flat, grouped, nested

    captured, shape = io.StringIO(), grouped(options)
    arguments = spelled(sys.argv[1:] if arguments is None else arguments)
    try:
        with contextlib.redirect_stderr(captured):
            default = {} if default is None else {"default": nested(shape, default)}
            config = (tyro.conf.OmitArgPrefixes,)
            found = tyro.cli(shape, description=description, args=arguments, prog=program, config=config, **default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        flags = [f"--{name.strip('_').replace('_', '-')}" for name in flag_names(options)]
        refuse(with_flags(_one_line(captured.getvalue(), flags), flag_names(options)))
    try:
        return flat(options, found)
    except SdjaxError as error:
        refuse(with_flags(str(error), flag_names(options)))


def spelled(arguments: Sequence[str]) -> list[str]:
    """Returns the words of a command line with torch's names of dtypes as ours: --dtype fp16 is --dtype float16."""
    found = []
    for word in arguments:
        flag, equals, value = word.partition("=") if word.startswith("--dtype=") else ("", "", word)
        after = equals or (found and found[-1] == "--dtype")
        found.append(f"{flag}{equals}{SHORT.get(value, value)}" if after else word)
    return found


def flag_names(options: type) -> set[str]:
    """Returns the names of the fields of a dataclass that are flags on the command line."""
    return {field.name for field in fields(options)} - {"prompt"}


def run(
    main: Callable[[Options], None],
    options: type[Options],
    defaults: Callable[[Options], Options | None] | None = None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> None:
    """Parses the command line, calls main(options), and turns every refusal into one line and exit status 2.

    What the terminal cannot print is printed with escapes.

    main: its docstring is the text of --help.
    options: a dataclass.
    defaults: defaults(parsed) may return an instance with other defaults; the command line is then parsed again.
    arguments, program: see `parse`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with reader_may_leave():
        _run(main, options, defaults, arguments, program)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ends the process quietly, with status 141 as a shell reports it, when a pipe's reader has closed standard output.

    `sdjax --help | head -3` is the usual case.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        sys.exit(128 + 13)


def _run(main, options, defaults, arguments, program) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--version"]:
        print("\n".join(versions("--verbose" in arguments)))
        return
    with logged_to_stderr():
        _started(main, options, defaults, arguments, program)


def _started(main, options, defaults, arguments, program) -> None:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would warn that PyTorch was not found
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of EXIF, palettes, sizes: what matters is refused by name
    gc.set_threshold(50_000)  # imports and traces make millions of lasting objects: collecting took a tenth of the time
    parsed = parse(options, main.__doc__ or "", None, arguments, program)
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        if defaults and (default := defaults(parsed)) is not None:
            parsed = parse(options, main.__doc__ or "", default, arguments, program)
        if getattr(parsed, "cache", True):
            keep_programs()
        main(parsed)
    except BrokenPipeError:
        raise
    except (SdjaxError, OSError) as error:
        refuse(with_flags(str(error), flag_names(options)))
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        refuse(
            f"the device's memory does not hold this ({' '.join(str(error).split())[:300]}); fewer or smaller "
            "pictures at once and --dtype bfloat16 take less"
        )
    finally:
        for name, handler in handlers.items():  # training sets its own handlers
            signal.signal(name, handler)


class ToStderr(logging.Handler):
    """Prints the package's messages on standard error, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(record.getMessage(), file=sys.stderr)
        else:
            print(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Prints what the package logs from INFO on: what is loaded and compiled, and what may not be meant."""
    handler, before = ToStderr(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextlib.contextmanager
def model_flag() -> Iterator[None]:
    """Puts --model in place of the argument `sd` in the message of any SdjaxError that is raised inside the block."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(re.sub(r"^sd(\.tokenizer is None)?(?=[: ])", "--model", str(error))) from None


def versions(verbose: bool) -> list[str]:
    """Returns the lines of --version; with --verbose also those of Python, the libraries and the devices."""
    lines = [f"sdjax {version('sdjax')}"]
    if verbose:
        import jax

        lines.append(f"Python {platform.python_version()}, {platform.platform()}")
        lines.append(", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")))
        lines.append(f"{jax.default_backend()}: {', '.join(device.device_kind for device in jax.devices())}")
    return lines


def refuse(message: str) -> None:
    """Prints `error: message` in one line and exits with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


class Progress:
    """A progress bar with the time left, on standard error.

    It appears at the first call, so that a refusal before that has its line for itself.
    """

    def __init__(self, unit: str):
        self.unit, self.bar = unit, None

    def say(self, line: object) -> None:
        """Prints a line, above the bar if there is one."""
        if self.bar is None:
            print(line)
        else:
            self.bar.write(str(line), file=sys.stdout)

    def __call__(self, done: float, total: int) -> None:
        """Shows `done` of `total`; `done` may be a fraction. The time left is reckoned from the first call on."""
        if self.bar is None:
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} " + self.unit + "s [{elapsed}<{remaining}]"
            self.bar = tqdm(total=total, bar_format=form, initial=done)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.bar.close()


def _one_line(box: str, flags: Iterable[str] = ()) -> str:
    """Returns the sentences inside tyro's box, without escapes, borders, its title and the hint below its rule; of an
    option that there is not, its name and the nearest one."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    if unknown := re.search(r"Unrecognized options:[\s│]*(-[^\s,]+)", box):
        return f"no option {unknown[1]}" + (did_you_mean(unknown[1], flags) or "; see --help")
    text = re.split(r"\n│ ─+ │\n", box)[0]
    lines = [line for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sentence = " ".join(" ".join(re.sub(r"[─-╿]+", " ", line) for line in lines).split())
    sentence = re.sub(r"^Error parsing \w+: ", "", sentence)  # the dataclass refused, and named the argument itself
    return sentence or "the command line could not be read: see --help"
