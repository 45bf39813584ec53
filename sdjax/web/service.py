"""What all addresses share: the models, the scheduler, settings, and waiting for a job while its client is there."""

import asyncio
import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from starlette.requests import Request

from sdjax.web.job import Job
from sdjax.web.metrics import Metrics
from sdjax.web.models import Models
from sdjax.web.refusals import Refused, busy
from sdjax.web.scheduler import Scheduler

Result = TypeVar("Result")

LONGEST_NUMBER = 100  # digits
MOST_VALUES = 200_000  # of an object: a body of tiny ones would take thirty times its size
AT_ONCE = 4  # requests whose pictures are read or written at once


@dataclass
class Service:
    """The server's state. settings: those of /sdapi/v1/options that requests take if they have none of their own."""

    models: Models
    scheduler: Scheduler
    metrics: Metrics
    most_pixels: int
    settings: dict[str, Any] = field(default_factory=dict)
    finished: deque[str] = field(default_factory=lambda: deque(maxlen=256))  # names of jobs
    limiter: anyio.CapacityLimiter | None = None

    async def apart(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a function that takes a while in another thread."""
        if self.limiter is None:
            self.limiter = anyio.CapacityLimiter(AT_ONCE)
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self.limiter)

    async def drawn(self, request: Request, job: Job, make: Callable[[dict[int, Any]], Result]) -> Result:
        """Returns what `make` makes of a job's pictures, by their numbers. The job ends when its client leaves.

        Refused: the queue is full, or the job cannot be drawn.
        """
        self.scheduler.answering += 1
        try:
            return await self.apart(make, await self.waited(request, job))
        finally:
            self.scheduler.answering -= 1

    async def waited(self, request: Request, job: Job) -> dict[int, Any]:
        """Returns a job's pictures; see `drawn`."""
        await self.apart(self.scheduler.submit, job)
        gone = asyncio.ensure_future(left(request))
        answer = asyncio.wrap_future(job.answered)
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise busy("the client left")
            return answer.result()
        finally:
            gone.cancel()
            if not job.answered.done():
                self.scheduler.leave(job)
            self.finished.append(job.name)
            answer.cancel() if not answer.done() else answer.exception()


async def left(request: Request) -> None:
    """Waits until the client of a request is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def read_json(body: bytes) -> dict[str, Any]:
    """Returns the object in a body. Refused: it is none. Numbers that no field takes become infinite."""

    def whole(digits: str) -> float:
        return int(digits) if len(digits) <= LONGEST_NUMBER else math.inf

    try:
        if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES:
            raise ValueError
        found = json.loads(body, parse_int=whole)
    except (ValueError, RecursionError):
        raise Refused("an object in JSON expected", None, 422, "json_invalid") from None
    if not isinstance(found, dict):
        raise Refused("an object in JSON expected", None, 422, "json_invalid")
    return found


async def body_of(request: Request, empty: bool = False) -> dict[str, Any]:
    """Returns the object that a request brings. empty: none is {}."""
    body = await request.body()
    if empty and not body.strip():
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refused("Content-Type application/json expected", None, 415, "content_type")
    if len(body) < 2**16:
        return read_json(body)
    return await anyio.to_thread.run_sync(read_json, body)
