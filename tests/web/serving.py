"""A server in this process, for tests: real HTTP at a free port, in a thread."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
from PIL import Image

from sdjax.commands.serve import listen
from sdjax.web.app import make_app
from sdjax.web.metrics import Metrics
from sdjax.web.models import Models
from sdjax.web.scheduler import Scheduler
from sdjax.web.server import Protocol, Server, config_of
from sdjax.web.service import Service


class Served:
    """A running server."""

    def __init__(self, url, service, sd, server):
        self.url, self.service, self.sd, self.server = url, service, sd, server

    def ask(self, path, body=None, *, headers=None, method=None, timeout=300):
        """Returns (status, the JSON of the answer or its bytes, headers)."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {"Content-Type": getattr(data, "kind", "application/json")} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, own | (headers or {}), method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
            if answer.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return answer.status, content, answer.headers

    def get(self, path):
        status, content, _ = self.ask(path)
        assert status == 200, (status, content)
        return content

    def post(self, path, body):
        status, content, _ = self.ask(path, body)
        assert status == 200, (status, content)
        return content


@contextmanager
def serving(model="emoji", queue=64, most_pixels=2**20, password=None, cors=(), **folders):
    models = Models(str(model), **folders)
    sd, metrics = models.get(models.current), Metrics()
    scheduler = Scheduler(models, queue, metrics)
    service = Service(models, scheduler, metrics, most_pixels)
    listening, began = listen("127.0.0.1", 0), threading.Event()
    server = Server(config_of(make_app(service, password, cors)), scheduler, lambda port: began.set())
    assert issubclass(server.config.http, Protocol)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    scheduler.start()
    thread.start()
    assert began.wait(30)
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", service, sd, server)
    finally:
        scheduler.stop()
        server.should_exit = True
        thread.join(20)
        scheduler.thread.join(60)


def in_base64(image, **how) -> str:
    """A picture as clients send it."""
    out = io.BytesIO()
    image.save(out, "PNG", **how)
    return base64.b64encode(out.getvalue()).decode()


def opened(text):
    """A picture as the server sends it."""
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def difference(one, other) -> int:
    """The largest difference of two pictures in 1/255."""
    assert one.size == other.size
    one, other = (np.asarray(image.convert("RGB"), np.int16) for image in (one, other))
    return int(np.abs(one - other).max())
