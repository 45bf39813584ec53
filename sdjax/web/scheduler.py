"""The scheduler: one thread that owns the devices, and a bounded queue of requests that wait for it.

Pictures of one key (see ask.py) that wait become one batch, whoever asked for them. After a batch the thread waits a
moment for the clients that were just answered, so that they do not fall into two halves which take turns.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import jax

from sdjax.devices.host import crowded, trim_memory
from sdjax.errors import SdjaxError, out_of_memory
from sdjax.model.value import StableDiffusion
from sdjax.web.ask import Ask, checked
from sdjax.web.draw import draw, most_at_once
from sdjax.web.job import Job
from sdjax.web.metrics import Metrics
from sdjax.web.models import Models
from sdjax.web.refusals import Refused, busy, refused_by_library

TRIM = 8  # batches after which freed memory goes back to the system: what many threads use and free would pile up
SHAPES = 128  # programs are let go of when so many shapes were drawn: strangers choose them
GRACE = 0.15  # share of a batch's time that the next one waits for more of its kind
log = logging.getLogger("sdjax.web")


class Stop(Exception):
    """Ends a batch that nobody waits for any more."""


class Batch:
    """Pictures of several jobs that are drawn together."""

    def __init__(self, parts: list[tuple[Job, int, int]], most: int):
        self.parts, self.most = parts, most  # (job, its first picture, the end)

    @property
    def asks(self) -> list[Ask]:
        return [ask for job, first, end in self.parts for ask in job.asks[first:end]]


class Scheduler:
    """Owns the devices. `submit`, `leave`, `interrupt`, `close` may be called from any thread.

    most: how many requests may wait.
    """

    def __init__(self, models: Models, most: int, metrics: Metrics):
        self.models, self.most, self.metrics = models, most, metrics
        self.lock = threading.Condition()
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.closed = self.stopped = False
        self.answering = 0  # requests that wait for pictures or whose answer is made; the loop's thread counts them
        self.expected, self.until = 1, 0.0  # how many pictures may come, and how long they are waited for
        self.thread = threading.Thread(target=self.run, name="sdjax-devices", daemon=True)

    def start(self) -> None:
        self.thread.start()

    # ---- from other threads

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue. Refused: it is full, or the server ends; or the model refuses it."""
        if (sd := self.models.loaded(job.model)) is not None:
            self.make_ready(job, sd)
        with self.lock:
            if self.closed:
                raise busy("the server is being stopped")
            if len(self.in_queue()) >= self.most:
                seconds = max(1, round(self.metrics.seconds_a_picture() * len(self.waiting)))
                raise Refused("the queue is full, try again later", None, 503, "queue_full", min(seconds, 120))
            self.waiting.append(job)
            self.lock.notify_all()

    def make_ready(self, job: Job, sd: StableDiffusion) -> None:
        """Makes a job's pictures. Refused: the model does not take it."""
        asks = job.prepare(sd)
        try:
            job.keys = [checked(sd, job.model, ask) for ask in asks]
        except SdjaxError as error:
            raise of_library(error, job, asks) from None
        job.sd, job.asks = sd, asks

    def leave(self, job: Job) -> None:
        """The client is gone: its job leaves the queue now, or ends at the next step."""
        with self.lock:
            job.left = True
            if job in self.waiting:
                self.waiting.remove(job)
            if job not in self.running:
                job.answer(busy("the client left"))
            self.lock.notify_all()

    def interrupt(self, name: str | None = None, skip: bool = False) -> None:
        """Ends the web UI's jobs that are drawn, or the one of a name, with the pictures of their last step.

        skip: ends the pictures that are drawn now and goes on with the job's others.
        """
        with self.lock:
            for job in self.running:
                if job.interface == "sdapi" and name in (None, job.name):
                    job.skipped |= skip
                    job.interrupted |= not skip
            for job in [job for job in self.waiting if job.began and job not in self.running]:
                if job.interface == "sdapi" and name in (None, job.name) and not skip:  # it is between two batches
                    job.interrupted = True
                    self.end(job)

    def in_queue(self) -> list[Job]:
        """Returns the jobs that wait and are not drawn in part, in order."""
        return [job for job in self.waiting if not job.began]

    def oldest(self) -> Job | None:
        """Returns the oldest job that is drawn, or None."""
        with self.lock:
            return min(self.running, key=lambda job: job.arrived, default=None)

    def find(self, name: str) -> Job | None:
        with self.lock:
            return next((job for job in (*self.running, *self.waiting) if job.name == name), None)

    def close(self) -> None:
        """Takes no more jobs and ends those that wait; those that are drawn go on."""
        with self.lock:
            self.closed = True
            for job in self.in_queue():
                self.waiting.remove(job)
                job.answer(busy("the server is being stopped"))
            self.lock.notify_all()

    def idle(self) -> bool:
        """Is nothing drawn, waited for or answered?"""
        with self.lock:
            return not self.running and not self.waiting and not self.answering

    def stop(self) -> None:
        """Ends all jobs; the thread ends at its next step."""
        self.close()
        with self.lock:
            self.stopped = True
            for job in (*self.running, *self.waiting):
                job.left = True
                job.answer(busy("the server is being stopped"))
            self.waiting.clear()
            self.lock.notify_all()

    # ---- the thread

    def run(self) -> None:
        shapes: set[tuple] = set()
        for number in itertools.count(1):
            if number % TRIM == 0:
                trim_memory()
            try:
                batch = self.next_batch()
            except Exception as error:  # a mistake of ours ends a request, not the thread
                self.drop_first(error)
                continue
            if batch is None:
                return
            began = time.monotonic()
            job, first, _ = batch.parts[0]
            shape = job.keys[first].shape, len(batch.asks).bit_length()
            if shape not in shapes and (len(shapes) >= SHAPES or crowded()):
                jax.clear_caches()
                shapes.clear()
            shapes.add(shape)
            try:
                self.draw(batch)
            finally:
                seconds, count = time.monotonic() - began, len(batch.asks)
                with self.lock:
                    self.running = []
                    ahead = sum(len(job.asks or ()) - job.next for job in self.waiting)
                    self.expected, self.until = count + ahead, time.monotonic() + GRACE * seconds
                self.metrics.drawn(count, seconds)

    def drop_first(self, error: Exception) -> None:
        """Answers the first job that waits with an error."""
        with self.lock:
            job = self.waiting.popleft() if self.waiting else None
        if job is not None:
            job.answer(self.failure(error, job))

    def next_batch(self) -> Batch | None:
        """Waits for jobs, and returns the next batch; None: the server ends."""
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.waiting or self.stopped)
                if self.stopped:
                    return None
                first = self.waiting[0]
                sd = self.models.loaded(first.model)
                if first.asks is not None and sd is not None:
                    if not first.asks:
                        self.waiting.remove(first)
                        first.answer()
                        continue
                    most = most_at_once(sd, first.asks[first.next], first.keys[first.next].text)
                    enough = lambda first=first, most=most: (
                        self.stopped or first not in self.waiting or self.alike(first) >= min(most, self.expected)
                    )
                    while not enough() and (left := self.until - time.monotonic()) > 0:
                        self.lock.wait(left)
                    if first in self.waiting and not self.stopped:
                        return self.taken(first, most)
                    continue
            self.load(first)

    def load(self, job: Job) -> None:
        """Loads the model of a job, and makes the job ready."""
        try:
            try:
                sd = self.models.get(job.model)
            except SdjaxError as error:
                log.warning("%s", error)
                right = "a model that can be loaded expected; the server's log says why this one cannot"
                raise Refused(right, job.fields.get("model")) from None
            if job.asks is None:
                self.make_ready(job, sd)
        except Exception as error:
            with self.lock:
                if job in self.waiting:
                    self.waiting.remove(job)
            job.answer(error if isinstance(error, Refused) else self.failure(error, job))

    def alike(self, first: Job) -> int:
        """Returns how many pictures of the key of a job's next one wait."""
        key = first.keys[first.next]
        return sum(job.keys[n] == key for job in self.waiting if job.asks for n in range(job.next, len(job.asks)))

    def taken(self, first: Job, most: int) -> Batch:
        """Takes the next batch out of the queue; what is left of a job goes to the queue's end."""
        key, parts, room = first.keys[first.next], [], most
        for job in list(self.waiting):
            if not job.asks or not room:
                continue
            alike = itertools.takewhile(lambda n, job=job: job.keys[n] == key, range(job.next, len(job.asks)))
            count = min(room, len(list(alike)))
            if not count:
                continue
            parts.append((job, job.next, job.next + count))
            room -= count
            job.place, job.step, job.total, job.skipped = (job.next, job.next + count), 0, 1, False
            job.began = job.began or time.monotonic()
            job.next += count
            self.waiting.remove(job)
            if job.next < len(job.asks):
                self.waiting.append(job)
        self.running = [job for job, _, _ in parts]
        return Batch(parts, most)

    def draw(self, batch: Batch) -> None:
        """Draws a batch and answers the jobs that are complete."""
        sd = self.models.get(batch.parts[0][0].model)
        try:
            found = draw(sd, batch.asks, batch.most, lambda *seen: self.watch(batch, *seen))
        except Stop:
            found = None
        except Exception as error:
            if len(batch.parts) > 1 and not out_of_memory(error):  # one of them may be the reason
                for part in batch.parts:
                    self.draw(Batch([part], batch.most))
                return
            for job, _, _ in batch.parts:
                self.end(job, self.failure(error, job))
            return
        place = 0
        for job, first, end in batch.parts:
            for number in range(first, end):
                if found is not None and not job.answered.done() and number not in job.pictures:
                    if isinstance(found[place], SdjaxError):
                        self.end(job, Refused("the computation overflowed; smaller weights or guidance may help"))
                    job.pictures[number] = found[place]
                place += 1
            if job.left or job.interrupted or job.next == len(job.asks):
                self.end(job, busy("the client left") if job.left else None)

    def end(self, job: Job, error: Exception | None = None) -> None:
        with self.lock:
            if job in self.waiting:
                self.waiting.remove(job)
            self.running = [one for one in self.running if one is not job]
        job.answer(error)

    def watch(self, batch: Batch, step: int, total: int, picture: Callable[[], list]) -> None:
        """Notes how far a batch is, makes previews that were asked for, and ends jobs that are to end."""
        seen: list | None = None
        place = 0
        for job, first, end in batch.parts:
            job.step, job.total = step, total
            stops = (job.interrupted or job.skipped) and not job.answered.done() and first not in job.pictures
            if (stops or job.wanted) and not job.answered.done():
                seen = picture() if seen is None else seen
                own = seen[place : place + end - first]
                if job.wanted:
                    job.preview, job.previews, job.wanted = own, job.previews + 1, 0.0
                if stops:
                    job.pictures |= dict(zip(range(first, end), own, strict=True))
                    if job.interrupted or job.next == len(job.asks):
                        self.end(job)
            place += end - first
        if all(job.answered.done() or job.left or first in job.pictures for job, first, _ in batch.parts):
            raise Stop

    def failure(self, error: Exception, job: Job) -> Refused:
        """Returns what is answered for an error of a batch, and logs what is none of the client's business."""
        if isinstance(error, SdjaxError):
            return of_library(error, job, job.asks or [])
        if out_of_memory(error):
            return Refused("the device's memory does not hold this; ask for a smaller picture", None, 503, "no_memory")
        log.error("a batch failed", exc_info=error)
        return Refused("the picture could not be drawn", None, 500, "failed")


def of_library(error: SdjaxError, job: Job, asks: list[Ask]) -> Refused:
    """Returns the refusal of what the library refuses. Its messages of a LoRA's file begin with a path."""
    found = refused_by_library(str(error), job.fields)
    if found.field is None and any("<lora:" in ask.prompt for ask in asks):
        log.warning("%s", error)
        return Refused("names a LoRA that cannot be read, or does not fit this model", "prompt")
    return found
