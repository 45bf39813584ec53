"""What the server refuses, and the two forms in which its interfaces say so: the web UI's, and OpenAI's under /v1.

A message names the field and says what would be right; it never repeats the value.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import Request

from sdjax.errors import SdjaxError

MOST = 2000  # characters of a message


class Refused(Exception):
    """A request that is not answered with what it asks for.

    message: what would be right. field: where the mistake is; None: in no field. status: of HTTP.
    kind: a word for programs. retry: after so many seconds it may be asked again.
    """

    def __init__(
        self, message: str, field: str | None = None, status: int = 422, kind: str = "value_error", retry: int = 0
    ):
        super().__init__(message)
        self.message, self.field, self.status, self.kind, self.retry = message[:MOST], field, status, kind, retry


def busy(message: str, seconds: int = 5) -> Refused:
    """Returns the refusal of a request that the server has no place for."""
    return Refused(message, None, 503, "overloaded", seconds)


#: OpenAI's words for a status, by which its client chooses an exception.
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


def answer(request: Request, refused: Refused) -> JSONResponse:
    """Returns a refusal in the form of the interface that `request` is for."""
    status, headers = refused.status, {}
    if request.url.path.startswith("/v1/"):
        status = {422: 400, 415: 400}.get(status, 429 if refused.kind == "queue_full" else status)
        kind = TYPES.get(status, "invalid_request_error")
        body: dict[str, Any] = {
            "error": {"message": refused.message, "type": kind, "param": refused.field, "code": refused.kind}
        }
    elif refused.field is None and status != 422:
        body = {"detail": refused.message}
    else:
        where = ["body"] if refused.field is None else ["body", *refused.field.split(".")]
        body = {"detail": [{"loc": where, "msg": refused.message, "type": refused.kind}]}
    if refused.retry:
        headers["Retry-After"] = str(refused.retry)
    if status == 401:
        headers["WWW-Authenticate"] = "Basic"
    return JSONResponse(body, status, headers)


@contextmanager
def in_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Turns an SdjaxError of the library into a refusal that names the interface's field and not the value.

    names: the library's arguments -> the fields that they come from. The library's messages begin with the argument
    and, before a colon, its value.
    """
    try:
        yield
    except SdjaxError as error:
        raise refused_by_library(str(error), names) from None


def refused_by_library(message: str, names: Mapping[str, str]) -> Refused:
    """Returns the refusal for a message of the library; see `in_fields`."""
    first = re.match(r"\w+", message)
    name = first[0] if first else ""
    right = message.partition(": ")[2] or message
    field = names.get(name)
    if name in ("prompt", "negative_prompt", "lora_folder") and "<lora" in message:
        return Refused("names a LoRA that is not there, or not as <lora:name:weight>; loras lists them", "prompt")
    if field is None:
        return Refused("cannot be drawn by this model with these settings", None)
    return Refused(re.sub(r"<[^<>]*>|/\S*", "", right), field)
