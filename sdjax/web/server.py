"""uvicorn with what it does not do itself: limits of time for headers, and an orderly end at SIGTERM and Ctrl-C."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from h11 import IDLE
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdjax.web.scheduler import Scheduler

HEADERS = 30.0  # seconds in which a request's headers have to arrive
FINISH = 20.0  # seconds that pictures which are being drawn may still take at the end
LAST = 26.0  # seconds after which the process ends whatever happens


class Protocol(H11Protocol):
    """HTTP whose headers have to arrive within HEADERS seconds; uvicorn itself waits for ever."""

    waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self.wait_for_headers()

    def wait_for_headers(self) -> None:
        """Starts the timer when headers are expected, and stops it when they are there."""
        if self.conn.their_state is not IDLE:
            self.stop_waiting()
        elif self.waits is None:
            self.waits = self.loop.call_later(HEADERS, self.too_slow)

    def stop_waiting(self) -> None:
        if self.waits is not None:
            self.waits.cancel()
            self.waits = None

    def too_slow(self) -> None:
        self.waits = None
        if not self.transport.is_closing() and self.conn.their_state is IDLE:
            self.transport.close()


class Server(uvicorn.Server):
    """Serves until it is told to end: then nothing new is taken, what waits gets 503, and what is drawn may finish.

    started_at: called with the port when it answers.
    """

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, answers: Callable[[int], None]):
        super().__init__(config)
        self.scheduler, self.answers, self.ends = scheduler, answers, False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends in order at SIGTERM and SIGINT; uvicorn's own would raise them once more at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.signal(name, self.handle_exit) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.ends:
            return
        self.ends = True
        threading.Thread(target=self.end, name="sdjax-end", daemon=True).start()

    def end(self) -> None:
        """Lets what is drawn finish, for a while, and then ends the server."""
        threading.Thread(target=leave_at_last, daemon=True).start()
        until = time.monotonic() + FINISH
        self.scheduler.close()
        while not self.scheduler.idle() and time.monotonic() < until:
            time.sleep(0.05)
        self.scheduler.stop()
        until = max(until, time.monotonic()) + 0.1 * FINISH
        while not self.scheduler.idle() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # answers are sent
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.answers(sockets[0].getsockname()[1])


def leave_at_last() -> None:
    """Ends the process, whatever a device or a client still does."""
    time.sleep(LAST)
    sys.stdout.flush()
    os._exit(0)


def config_of(app: Any) -> uvicorn.Config:
    """Returns uvicorn's settings."""
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=2**16,
        proxy_headers=False,
    )


def serve(app: Any, scheduler: Scheduler, listening: socket.socket, answers: Callable[[int], None]) -> None:
    """Serves at a bound socket until SIGTERM or Ctrl-C."""
    Server(config_of(app), scheduler, answers).run([listening])
