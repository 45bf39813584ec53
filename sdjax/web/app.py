"""The application: all addresses of the server.

| | |
|---|---|
| GET / and /page/NAME | the page, static files of the package's own |
| GET /healthz | {"status": "ok"}, never behind a password; 503 while the server is being stopped |
| GET /metrics | for Prometheus, see metrics.py |
| GET /openapi.json | the fields of all requests |
| POST /sdapi/v1/txt2img, img2img, interrupt, skip; GET progress | webui.py |
| GET, POST /sdapi/v1/options, lists, png-info, extra-single-image, memory | webui_lists.py |
| GET /sdapi/v1/sdjax | the server's own: {model, size, unit, steps, guidance_scale, max_pixels, queue, options} |
| POST /sdapi/v1/sdjax/tokens | {"prompt"} -> {tokens, limit, chunks} of the served model |
| POST /internal/progress, GET /internal/pending-tasks, /internal/ping, /queue/status | a task's own progress, by id |
| GET /controlnet/model_list, module_list, version | webui_lists.py |
| GET /v1/models; POST /v1/images/generations, edits, variations; GET /v1/images/files/NAME | images_api.py |
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from sdjax.web import images_api, webui, webui_lists
from sdjax.web.limits import guarded
from sdjax.web.refusals import Refused, answer
from sdjax.web.service import Service

PAGE = Path(__file__).with_name("page")
log = logging.getLogger("sdjax.web")

#: Nothing from another host, and no other page around it.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def make_app(service: Service, password: str | None = None, cors: tuple[str, ...] = ()) -> Callable[..., Awaitable]:
    """Returns the server as an ASGI application.

    password: "user:password", which everything but /healthz and /v1/images/files asks for; None: nothing does.
    cors: origins whose pages may read answers.
    """
    app = FastAPI(title="sdjax", docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(webui.routes(service))
    app.include_router(webui_lists.routes(service))
    app.include_router(images_api.routes(service))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        ends = service.scheduler.closed or not service.scheduler.thread.is_alive()
        return JSONResponse({"status": "stopping" if ends else "ok"}, 503 if ends else 200)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        with service.scheduler.lock:
            waiting, running = len(service.scheduler.in_queue()), len(service.scheduler.running)
        return PlainTextResponse(service.metrics.text(waiting, running), media_type="text/plain; version=0.0.4")

    files = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES} if PAGE.is_dir() else {}

    @app.get("/")
    async def page() -> Response:
        return file("index.html")

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        return file(name)

    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        kind = TYPES[files[name].suffix]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(files[name], media_type=kind, headers=headers)

    app.add_exception_handler(Refused, lambda request, error: answer(request, error))
    app.add_exception_handler(HTTPException, refused_http)
    app.add_exception_handler(RequestValidationError, refused_fields)
    app.add_exception_handler(Exception, failed)
    return guarded(app, service.metrics, password, cors)


async def refused_http(request: Request, error: HTTPException) -> Response:
    """Answers an address that there is not, or another method."""
    words = {404: "there is no such address", 405: "this address takes another method"}
    status = error.status_code
    found = answer(request, Refused(words.get(status, "the request cannot be read"), None, status, f"http_{status}"))
    found.headers.update(error.headers or {})
    return found


async def refused_fields(request: Request, error: RequestValidationError) -> Response:
    """Answers fields that FastAPI refuses, without their values."""
    first = error.errors()[0] if error.errors() else {}
    field = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
    return answer(request, Refused("another value expected", field))


async def failed(request: Request, error: Exception) -> Response:
    """Answers a mistake of the server's own."""
    return answer(request, Refused("the server made a mistake", None, 500, "failed"))
