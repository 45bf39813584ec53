"""`sdjax serve`: what its command line refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from sdjax.commands.serve import Options, check_options, listen
from sdjax.errors import SdjaxError
from tests.scripts import ROOT


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"queue": 0}, "--queue"),
        ({"keep_models": 0}, "--keep-models"),
        ({"max_pixels": -1}, "--max-pixels"),
        ({"port": 70000}, "--port"),
        ({"lora_folder": ROOT / "nowhere"}, "--lora-folder"),
        ({"model_folder": ROOT / "pyproject.toml"}, "--model-folder"),
        ({"api_auth": "me"}, "--api-auth"),
        ({"cors": ("localhost",)}, "--cors"),
        ({"warm": "1,x"}, "--warm"),
        ({"warm": "0"}, "--warm"),
    ],
)
def test_refusals(change, word):
    options = Options(**change)
    with pytest.raises(SdjaxError, match=f"^{word}"):
        check_options(options, options.api_auth)


def test_the_password_is_not_repeated():
    with pytest.raises(SdjaxError) as error:
        check_options(Options(api_auth="secret"), "secret")
    assert "secret" not in str(error.value)


def test_a_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SdjaxError, match=r"^--port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(SdjaxError, match=r"^--host"):
        listen("nowhere.invalid", 0)


def started(*arguments, cwd):
    """Starts a server; returns (the process, its address)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "sample" / "serve.py"), "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    line = process.stdout.readline()
    if not re.fullmatch(r"http://127.0.0.1:\d+\n", line):
        process.kill()
        pytest.fail(line + process.stderr.read())
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return process, line.strip()


def ask(url, body, answers):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/sdapi/v1/txt2img", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            answers.append((answer.status, json.load(answer)))
    except urllib.error.HTTPError as error:
        answers.append((error.code, json.load(error)))
    except OSError as error:
        answers.append((0, str(error)))


def progress(url):
    with urllib.request.urlopen(f"{url}/sdapi/v1/progress?skip_current_image=true") as answer:
        return json.load(answer)["state"]["sampling_step"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "status"), [("SIGTERM", 300, 200), ("SIGINT", 300, 200)])
def test_it_ends_in_order(tmp_path, name, steps, status):
    """What is drawn finishes, what waits gets 503, nothing new is taken; status 0."""
    process, url = started(cwd=tmp_path)
    try:
        ask(url, {"steps": 1}, [])  # compiled
        drawn, waiting = [], []
        threads = [threading.Thread(target=ask, args=(url, {"steps": steps}, drawn))]
        threads[0].start()
        until = time.monotonic() + 200
        while not progress(url):
            assert time.monotonic() < until
            time.sleep(0.05)
        threads.append(threading.Thread(target=ask, args=(url, {"steps": 2}, waiting)))
        threads[1].start()
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(getattr(signal, name))
        assert process.wait(40) == 0
        assert time.monotonic() - began < 30
        for thread in threads:
            thread.join(10)
        assert drawn[0][0] == status and waiting[0][0] == 503, (drawn[0][0], waiting[0][0])
    finally:
        process.kill()


@pytest.mark.slow
def test_it_ends_even_while_much_is_drawn(tmp_path):
    """A request that would take minutes gets 503 after some 20 seconds."""
    process, url = started(cwd=tmp_path)
    try:
        answers = []
        body = {"steps": 1000, "batch_size": 16}
        thread = threading.Thread(target=ask, args=(url, body, answers))
        thread.start()
        until = time.monotonic() + 200
        while not progress(url):
            assert time.monotonic() < until
            time.sleep(0.1)
        began = time.monotonic()
        process.terminate()
        assert process.wait(40) == 0
        assert 15 < time.monotonic() - began < 30
        thread.join(10)
        assert answers[0][0] == 503
    finally:
        process.kill()
