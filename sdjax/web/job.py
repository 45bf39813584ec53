"""A request for pictures, from its arrival to its answer."""

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from sdjax.model.value import StableDiffusion
from sdjax.web.ask import Ask, Key


class Job:
    """A request for pictures, from its arrival to its answer.

    model: the name of the model. prepare: (the model) -> its pictures; it may raise Refused.
    interface: "sdapi" or "v1". fields: the interface's names of the library's arguments.
    """

    def __init__(
        self,
        model: str,
        prepare: Callable[[StableDiffusion], list[Ask]],
        name: str,
        interface: str,
        fields: dict[str, str],
    ):
        self.model, self.prepare, self.name, self.interface, self.fields = model, prepare, name, interface, fields
        self.asks: list[Ask] | None = None
        self.sd: StableDiffusion | None = None  # the model that its pictures were made for
        self.keys: list[Key] = []
        self.next = 0  # the first picture that is not drawn yet, nor being drawn
        self.pictures: dict[int, Any] = {}  # number -> PIL image
        #: Of the pictures by their numbers; of those that were drawn, if it was interrupted.
        self.answered: Future = Future()
        self.arrived, self.began = time.monotonic(), 0.0
        self.place, self.step, self.total = (0, 0), 0, 1  # those being drawn, and how far they are
        self.interrupted = self.skipped = self.left = False
        self.wanted = 0.0  # when a preview was asked for
        self.preview: Any = None
        self.previews = 0  # how many there were

    @property
    def active(self) -> bool:
        return self.began > 0 and not self.answered.done()

    @property
    def progress(self) -> float:
        """The share of the work that is done, 0 .. 1."""
        if self.answered.done():
            return 1.0
        if not self.asks or not self.began:
            return 0.0
        now = sum(number not in self.pictures for number in range(*self.place))
        return min((len(self.pictures) + now * self.step / self.total) / len(self.asks), 1.0)

    def answer(self, error: Exception | None = None) -> None:
        """Ends the request, with its pictures or with an error."""
        self.preview = None
        with suppress(InvalidStateError):  # it has ended already
            if error is not None:
                self.answered.set_exception(error)
            else:
                self.answered.set_result({n: self.pictures[n] for n in sorted(self.pictures)})
