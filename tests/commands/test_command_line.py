"""How a command line starts: what it imports, and which compiled programs it finds."""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass

import jax
import pytest

from sdjax.commands import command_line as cli
from sdjax.devices import host
from tests.scripts import ROOT


def python(code, *arguments, cwd=ROOT, **where):
    """(seconds, last line printed) of a fresh process."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | where,
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - begin, done.stdout.strip().splitlines()[-1]


LOADED = "print([name for name in ('jax', 'flax', 'transformers', 'PIL', 'torch') if name in sys.modules])"
RUN = (
    "import runpy, sys; sys.argv = ['generate.py', *sys.argv[1:]]; "
    f"run = lambda: runpy.run_path({str(ROOT / 'sample' / 'generate.py')!r}, run_name='__main__')\n"
)


def test_importing_sdjax_imports_nothing_else():
    """Under 1.5 s, with room for a busy machine: what takes long is JAX."""
    seconds, loaded = python(f"import sys, sdjax; {LOADED}")
    assert seconds < 1.5 and loaded == "[]"


def test_a_device_that_is_too_small_is_said_in_one_line(monkeypatch, capsys):
    @dataclass(frozen=True)
    class Options:
        said: str = "RESOURCE_EXHAUSTED: Out of memory allocating\n 9 bytes."

    def main(options):
        raise jax.errors.JaxRuntimeError(options.said)

    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setenv("SDJAX_CACHE", "off")
    with pytest.raises(SystemExit) as stop:
        cli.run(main, Options)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "Out of memory allocating 9 bytes.); fewer" in said
    monkeypatch.setattr(sys, "argv", ["x", "--said", "INTERNAL"])
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        cli.run(main, Options)


def test_as_many_files_may_be_open_as_the_system_allows():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        host.open_more_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard if 0 < hard < 2**16 else 2**16, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_help_comes_at_once():
    code = f"try:\n run()\nexcept SystemExit as stop:\n assert not stop.code; {LOADED}"
    seconds, loaded = python(RUN + code, "--help")
    assert seconds < 2 and loaded == "[]"


COUNT = (
    RUN
    + """
import collections, jax, json
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rpartition("/")[2]]))
run()
print(json.dumps({name: counts[name] for name in ("cache_hits", "cache_misses")}))
"""
)


def test_a_second_process_finds_the_first_ones_programs(place, tmp_path):
    def draw(**where):
        where |= {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_COMPILATION_CACHE_DIR": "",
        }
        return json.loads(
            python(COUNT, "cat", "--model", "model", "--steps", 2, "--out", tmp_path / "out", cwd=place, **where)[1]
        )

    cache = tmp_path / "cache"
    first, second = draw(SDJAX_CACHE=str(cache)), draw(SDJAX_CACHE=str(cache))
    assert first["cache_misses"] > 5 and second == {"cache_hits": sum(first.values()), "cache_misses": 0}
    assert any(cache.iterdir())
    pictures = sorted((tmp_path / "out").iterdir())
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.parametrize(
    "where, expected",
    [
        ({"SDJAX_CACHE": "off"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "elsewhere"}, "elsewhere"),
        ({"SDJAX_CACHE": "here"}, "here"),
        ({"HOME": "home"}, "home/.cache/sdjax"),
    ],
)
@pytest.mark.parametrize("imports", ["sdjax.devices.host, jax", "jax, sdjax.devices.host"])
def test_where_programs_are_kept(imports, where, expected):
    first, second = imports.split(", ")
    code = f"import {first}; from sdjax.devices import host; host.keep_programs(); import {second}, jax\n"
    found = python(
        code + "print(jax.config.jax_compilation_cache_dir or None)",
        **{"SDJAX_CACHE": "", "JAX_COMPILATION_CACHE_DIR": ""} | where,
    )[1]
    assert found == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, which has ways of its own")
def test_what_compiling_took_is_given_back():
    """300 MB of small blocks, freed but for one that lies behind them; then JAX says that it compiled for 2 s."""
    code = """
import ctypes, jax
from sdjax.devices.host import return_memory
resident = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if "VmRSS" in line) // 1000
return_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(10_000) for _ in range(30_000)]
for block in blocks:
    ctypes.memset(block, 1, 10_000)
full = resident()
for block in blocks[:-1]:
    libc.free(block)
given_back = []
for seconds in (0.1, 2.0):
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds)
    given_back.append(full - resident())
print(given_back[0] < 50, given_back[1] > 250)
"""
    assert python(code)[1] == "True True"
