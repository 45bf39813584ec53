"""What stands before the application, in ASGI: passwords, limits of size and time, CORS, the access log.

Nothing here reads a body before its size is known to be within the limit.
"""

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from sdjax.web.metrics import Metrics
from sdjax.web.refusals import Refused, answer

LARGEST = 64 * 2**20  # bytes of a body
ALL_BODIES = 8 * LARGEST  # of all bodies at once
SECONDS = 30.0  # in which a body has to arrive
OPEN, OPEN_FOLDER = "/healthz", "/v1/images/files/"  # without a password
METHODS = "GET, POST, OPTIONS"

access = logging.getLogger("sdjax.web.access")

App = Callable[[dict, Callable, Callable], Awaitable[None]]


def guarded(app: App, metrics: Metrics, password: str | None, origins: tuple[str, ...]) -> App:
    """Returns an application with everything of this file around it."""
    return logged(shared_with(allowed(limited(app), password), origins), metrics)


def logged(app: App, metrics: Metrics) -> App:
    """Writes a line of JSON for each answer, and counts it. Queries and bodies are not written."""

    async def call(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def sending(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
            await send(message)

        try:
            await app(scope, receive, sending)
        finally:
            metrics.answered(interface_of(scope["path"]), status)
            line = {
                "time": round(time.time(), 3),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"][:16],
                "path": scope["path"][:200],
                "status": status,
                "seconds": round(time.monotonic() - began, 4),
            }
            access.info(json.dumps(line))

    return call


def interface_of(path: str) -> str:
    for start in ("/sdapi/", "/v1/"):
        if path.startswith(start):
            return start.strip("/")
    return "other"


def shared_with(app: App, origins: tuple[str, ...]) -> App:
    """Lets pages of some origins read answers, "*" those of all; without any, there are no CORS headers."""

    async def call(scope: dict, receive: Callable, send: Callable) -> None:
        headers = dict(scope.get("headers") or ())
        origin = headers.get(b"origin", b"").decode("latin-1")
        if scope["type"] != "http" or not origin or not {origin, "*"} & {*origins}:
            return await app(scope, receive, send)
        own = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true" if origin in origins else b"false"),
            (b"vary", b"Origin"),
        ]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            asked = headers.get(b"access-control-request-headers", b"authorization, content-type")
            own += [(b"access-control-allow-methods", METHODS.encode()), (b"access-control-allow-headers", asked)]
            await send({"type": "http.response.start", "status": 204, "headers": own})
            return await send({"type": "http.response.body", "body": b""})

        async def sending(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await app(scope, receive, sending)

    return call


def allowed(app: App, password: str | None) -> App:
    """Answers 401 to everything but what is open without "user:password", as Basic or as a Bearer key."""
    if password is None:
        return app
    wanted = password.encode()

    async def call(scope: dict, receive: Callable, send: Callable) -> None:
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or path == OPEN or (path.startswith(OPEN_FOLDER) and path != OPEN_FOLDER):
            return await app(scope, receive, send)
        given = dict(scope.get("headers") or ()).get(b"authorization", b"")
        kind, _, value = given.partition(b" ")
        found = value.strip()
        if kind.lower() == b"basic":
            try:
                found = base64.b64decode(found, validate=True)
            except ValueError:
                found = b""
        elif kind.lower() != b"bearer":
            found = b""
        if hmac.compare_digest(found, wanted):
            return await app(scope, receive, send)
        await refuse(scope, receive, send, Refused("user and password expected", None, 401, "invalid_api_key"))

    return call


def limited(app: App) -> App:
    """Answers 413 to bodies above LARGEST, 408 to those that take longer than SECONDS, and 503 while there are many.

    A body that is compressed is refused: what it grows to is not known.
    """
    held = 0

    async def call(scope: dict, receive: Callable, send: Callable) -> None:
        nonlocal held
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers = dict(scope["headers"])
        length, own = headers.get(b"content-length", b"0"), 0
        large = Refused(f"a body of at most {LARGEST} bytes expected", None, 413, "too_large")
        if not length.isdigit() or len(length) > 20 or int(length) > LARGEST:
            return await refuse(scope, receive, send, large, close=True)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            words = Refused("a body without Content-Encoding expected", None, 415, "content_encoding")
            return await refuse(scope, receive, send, words, close=True)
        if held + int(length) > ALL_BODIES:
            return await refuse(
                scope, receive, send, Refused("too many bodies at once", None, 503, "busy", 5), close=True
            )
        until, whole = time.monotonic() + SECONDS, False
        refused: Refused | None = None

        async def receiving() -> dict:
            nonlocal held, own, whole, refused
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - time.monotonic()))
            except TimeoutError:
                refused = Refused(f"a whole body within {SECONDS:.0f} s expected", None, 408, "timeout")
                raise refused from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                held, own, whole = held + size, own + size, not message.get("more_body", False)
                if own > LARGEST:
                    refused = large
                    raise large
            return message

        async def sending(message: dict) -> None:
            if refused is not None and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await app(scope, receiving, sending)
        finally:
            held -= own

    return call


async def refuse(scope: dict, receive: Callable, send: Callable, refused: Refused, close: bool = False) -> Any:
    found = answer(Request(scope), refused)
    if close:  # what is left of the body is not read
        found.headers["Connection"] = "close"
    await found(scope, receive, send)
