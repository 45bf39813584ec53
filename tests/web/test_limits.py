"""Passwords, CORS, limits of size and time, the access log."""

import base64
import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdjax.web import limits, server, webui
from tests.web.serving import serving


@pytest.fixture(scope="module")
def guarded(house):
    """A server with a password, for pages of one origin."""
    with serving(house / "models" / "two", password="me:a secret", cors=("http://localhost:8000",)) as found:
        yield found


def basic(text):
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def bearer(text):
    return {"Authorization": f"Bearer {text}"}


PATHS = ["/", "/page/page.css", "/metrics", "/openapi.json", "/sdapi/v1/options", "/internal/ping", "/v1/models", "/no"]


@pytest.mark.parametrize("path", PATHS)
def test_everything_asks_for_the_password(guarded, path):
    wrong = [{}, basic("me:wrong"), basic("me"), bearer("a secret"), bearer(""), {"Authorization": "Basic \xff"}]
    wrong += [{"Authorization": "Basic"}, {"Authorization": "Digest me:a secret"}, basic("me:a secretx")]
    for headers in wrong:
        status, body, found = guarded.ask(path, headers=headers)
        assert (status, found["WWW-Authenticate"]) == (401, "Basic")
        assert "error" in body if path.startswith("/v1") else "detail" in body
    for headers in (basic("me:a secret"), bearer("me:a secret")):
        assert guarded.ask(path, headers=headers)[0] == (404 if path == "/no" else 200)


def test_what_is_open(guarded):
    assert guarded.ask("/healthz")[0] == 200 and guarded.ask("/v1/images/files/nothing")[0] == 404
    assert guarded.ask("/healthzz")[0] == guarded.ask("/v1/images/files")[0] == 401
    for path in ("/v1/images/files/../../models", "/v1/images/files/..%2f..%2fmodels", "//sdapi/v1/options"):
        assert guarded.ask(path)[0] in (401, 404)


def test_cors(guarded, served):
    origin, asks = {"Origin": "http://localhost:8000"}, {"Access-Control-Request-Method": "POST"}
    headers = guarded.ask("/sdapi/v1/options", headers=origin | basic("me:a secret"))[2]
    assert headers["Access-Control-Allow-Origin"] == "http://localhost:8000"
    status, _, headers = guarded.ask("/sdapi/v1/options", headers=origin | asks, method="OPTIONS")
    assert status == 204 and "POST" in headers["Access-Control-Allow-Methods"]
    other = {"Origin": "http://elsewhere"}
    assert "Access-Control-Allow-Origin" not in guarded.ask("/healthz", headers=other)[2]
    assert guarded.ask("/sdapi/v1/options", headers=other | asks, method="OPTIONS")[0] == 401
    assert "Access-Control-Allow-Origin" not in served.ask("/healthz", headers=origin)[2]  # nobody asked for it
    assert served.ask("/sdapi/v1/options", headers=origin | asks, method="OPTIONS")[0] == 405


def raw(served, *parts, pause=0.0, seconds=10):
    """Sends bytes; returns what comes back until the server closes."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        found = b""
        while part := connection.recv(2**16):
            found += part
        return found


HEAD = b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_large_bodies(served):
    """They are refused by their head, or as soon as they are too large."""
    found = raw(served, HEAD + b"Content-Length: 100000000\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413") and b"connection: close" in found.lower()
    found = raw(served, b"POST /v1/images/edits HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413") and b'"error"' in found


def test_large_bodies_in_chunks(served, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST", 2**16)
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    assert raw(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk).startswith(b"HTTP/1.1 413")


def test_slow_bodies(served, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    began = time.monotonic()
    assert raw(served, HEAD + b"Content-Length: 10\r\n\r\n{").startswith(b"HTTP/1.1 408")
    assert raw(served, b"POST /v1/images/generations" + HEAD[22:] + b"Content-Length: 9\r\n\r\n").startswith(
        b"HTTP/1.1 408"
    )
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: "])
def test_slow_headers(served, monkeypatch, beginning):
    monkeypatch.setattr(server, "HEADERS", 0.5)
    began = time.monotonic()
    assert raw(served, beginning) == b"" and time.monotonic() - began < 5


def test_slow_headers_of_a_second_request(served, monkeypatch):
    monkeypatch.setattr(server, "HEADERS", 0.5)
    whole = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    began = time.monotonic()
    assert raw(served, whole + b"GET /hea").count(b"HTTP/1.1 200") == 1
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("bytes_", [b"\0" * 100 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 10**6, b"G\r\n\r\n"])
def test_what_is_no_http(served, bytes_):
    try:
        found = raw(served, bytes_)
    except ConnectionError:
        found = b""
    assert found == b"" or (found.startswith(b"HTTP/1.1 4") and len(found) < 10_000)
    assert served.get("/healthz") == {"status": "ok"}


def test_the_access_log(served, caplog):
    with caplog.at_level(logging.INFO, "sdjax.web.access"):
        served.ask("/sdapi/v1/progress?secret=1")
        time.sleep(0.1)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "sdjax.web.access"]
    (line,) = [line for line in lines if line["path"] == "/sdapi/v1/progress"]
    assert (line["method"], line["status"]) == ("GET", 200) and line["seconds"] < 5
    assert "secret" not in json.dumps(lines)


def test_the_end_waits_for_answers(house, monkeypatch):
    """Pictures that are drawn when the server ends reach their client, even if writing them takes a while."""
    monkeypatch.setattr(server, "leave_at_last", lambda: None)  # it would end this process
    before = webui.png
    monkeypatch.setattr(webui, "png", lambda *given: time.sleep(4) or before(*given))
    with serving(house / "models" / "two") as own, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(own.post, "/sdapi/v1/txt2img", {"steps": 2})
        scheduler = own.service.scheduler
        while not scheduler.answering or scheduler.running or scheduler.waiting or not own.service.metrics.batches:
            time.sleep(0.01)
        own.server.end()
        assert answer.done() and answer.result()["images"]


def test_answers_keep_to_themselves(served):
    status, _, headers = served.ask("/")
    assert status == 200 and "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
