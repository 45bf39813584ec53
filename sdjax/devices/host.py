"""This process and its machine: compiled programs on disk, open files, memory."""

import contextlib
import ctypes
import os
import sys
from functools import cache


def keep_programs() -> None:
    """Keeps compiled programs on disk for the next process, in the folder that SDJAX_CACHE names or in ~/.cache/sdjax.

    It does nothing if SDJAX_CACHE is "off", or if JAX has a cache folder already (JAX_COMPILATION_CACHE_DIR).
    """
    folder = os.path.expanduser(os.environ.get("SDJAX_CACHE") or "~/.cache/sdjax")
    if folder == "off" or folder.startswith("~") or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    for name, value in {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.1}.items():
        if not os.environ.get(name.upper()):
            os.environ[name.upper()] = str(value)  # JAX reads it when imported; importing it here would be slow
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(name, value)


def programs_folder() -> str | None:
    """Returns the folder in which this process keeps compiled programs, or None if it keeps none."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or (
        sys.modules["jax"].config.jax_compilation_cache_dir if "jax" in sys.modules else None
    )


def open_more_files() -> None:
    """Raises this process' limit of open files, often 1,024, towards the system's limit, up to 65,536. Training needs
    it, because the files of caches stay open."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such module on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@cache
def return_memory() -> None:
    """From now on, returns the memory that compiling took to the system. glibc would keep it, more than 1 GB after SD
    1.5's UNet."""
    import jax

    def trim(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration") and seconds > 1:
            trim_memory()

    jax.monitoring.register_event_duration_secs_listener(trim)


def resident() -> int:
    """Returns the bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def crowded() -> bool:
    """True if this process has half of the memory maps that Linux allows it: every compiled program takes some, a model
    of a new size about 1,000, and at the limit (65,530) XLA's compiler ends the process."""
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit, open("/proc/self/maps", "rb") as maps:
            return sum(1 for _ in maps) > int(limit.read()) // 2
    except (OSError, ValueError):
        return False


def trim_memory() -> None:
    """Returns the memory that this process has freed, and that glibc keeps, to the system."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
