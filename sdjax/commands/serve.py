"""The image server: python sample/serve.py --port 7860

Prints its address once it answers: a page to draw on, the web UI's API under /sdapi and /internal, OpenAI's images API
under /v1, /metrics for Prometheus and /healthz. sample/guide/server.md says which programs speak to it.
"""

import errno
import logging
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from sdjax.devices.host import open_more_files, return_memory
from sdjax.errors import SdjaxError, loading, log


@dataclass(frozen=True)
class Options:
    GROUPS: ClassVar = {
        "files": ("model_folder", "keep_models", "lora_folder", "embedding_folder", "control_folder"),
        "limits": ("api_auth", "queue", "max_pixels", "cors"),
    }
    model: str = "emoji"
    """"emoji", a diffusers folder, a .safetensors or .ckpt file, or a hub id: served if a request names none."""
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 is for all computers of the network, with --api-auth."""
    port: int = 7860
    """0 takes a free one."""
    api_auth: str | None = None
    """USER:PASSWORD, without which everything is refused; SDJAX_API_AUTH in the environment is not seen by others."""
    queue: int = 64
    """How many requests may wait."""
    max_pixels: int = 1024 * 1024
    """Width times height of the largest picture."""
    model_folder: Path | None = None
    """Further models, which requests may name."""
    keep_models: int = 1
    """How many models stay in memory."""
    lora_folder: Path | None = None
    """What <lora:name:weight> in prompts may name."""
    embedding_folder: Path | None = None
    """Textual inversions, words for prompts."""
    control_folder: Path | None = None
    """ControlNets and T2I-Adapters."""
    warm: str = ""
    """Numbers of pictures, as 1,4,16, for which the model is compiled before the server answers."""
    cors: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="ORIGIN")] = ()
    """An origin, as http://localhost:8000, whose pages in a browser may use the server; once an origin; "*" is all."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    cache: bool = True
    """Keep compiled programs on disk, in ~/.cache/sdjax or where SDJAX_CACHE says: a folder, or off."""


def main(options: Options) -> None:
    """Serve pictures: a page, the web UI's API, the images API."""
    options_password = os.environ.get("SDJAX_API_AUTH") if options.api_auth is None else options.api_auth
    sizes = check_options(options, options_password)
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SdjaxError(f"serve: needs {error.name}, pip install 'sdjax[serve]'") from None
    listening = listen(options.host, options.port)
    open_more_files()
    return_memory()
    from sdjax.web.app import make_app
    from sdjax.web.metrics import Metrics
    from sdjax.web.models import Models
    from sdjax.web.scheduler import Scheduler
    from sdjax.web.server import serve
    from sdjax.web.service import Service
    from sdjax.web.warm import warm

    log.addFilter(lambda record: not str(record.msg).startswith("prompt %s"))  # what is drawn is nobody's business
    logging.getLogger("sdjax.web.access").addHandler(logging.StreamHandler(sys.stderr))
    logging.getLogger("sdjax.web.access").setLevel(logging.INFO)
    logging.getLogger("sdjax.web.access").propagate = False
    models = Models(
        options.model,
        options.model_folder,
        options.keep_models,
        options.embedding_folder,
        options.lora_folder,
        options.control_folder,
        options.dtype,
    )
    with loading():
        sd = models.get(models.current)
    warm(sd, models.current, sizes)
    metrics = Metrics()
    scheduler = Scheduler(models, options.queue, metrics)
    app = make_app(Service(models, scheduler, metrics, options.max_pixels), options_password, options.cors)
    scheduler.start()

    def answers(port: int) -> None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"http://{host}:{port}", flush=True)

    try:
        serve(app, scheduler, listening, answers)
    except OSError as error:  # another process has begun to listen there since
        raise SdjaxError(f"--port {options.port}: cannot be listened at ({error.strerror})") from None


def check_options(options: Options, password: str | None) -> list[int]:
    """Returns the sizes of --warm. SdjaxError: an option is out of range, or a folder is not there."""
    for name in ("queue", "keep_models", "max_pixels"):
        if getattr(options, name) < 1:
            raise SdjaxError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    if not 0 <= options.port < 2**16:
        raise SdjaxError(f"--port {options.port}: 0 to 65535")
    for name in ("model_folder", "lora_folder", "embedding_folder", "control_folder"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            raise SdjaxError(f"--{name.replace('_', '-')} {folder}: a folder that is there expected")
    if password is not None and not (password.partition(":")[0] and password.partition(":")[2]):
        raise SdjaxError("--api-auth: USER:PASSWORD expected")
    for origin in options.cors:
        if origin != "*" and ("://" not in origin or origin.endswith("/")):
            raise SdjaxError(f"--cors {origin}: an origin as http://localhost:8000 expected, or *")
    sizes = [size.strip() for size in options.warm.split(",") if size.strip()]
    if not all(size.isdecimal() and 1 <= int(size) <= 1024 for size in sizes):
        raise SdjaxError(f"--warm {options.warm}: numbers of pictures as 1,4,16 expected")
    return [int(size) for size in sizes]


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address, before a model is loaded. SdjaxError: it cannot be taken."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, UnicodeError) as error:
        of_host = not isinstance(error, OSError) or isinstance(error, socket.gaierror)
        flag = f"--host {host}" if of_host or error.errno == errno.EADDRNOTAVAIL else f"--port {port}"
        raise SdjaxError(f"{flag}: cannot be listened at ({getattr(error, 'strerror', None) or error})") from None
    return found
