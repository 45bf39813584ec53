"""Headless Chromium of the system, driven by playwright."""

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 120_000  # ms: a first picture compiles, on a machine that has more to do


@contextmanager
def chromium() -> Iterator:
    """Yields a browser; skips the test where there is no Chromium or no playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


def picture_file(size=(16, 16), text=None) -> dict:
    """A PNG of noise, as a file that is given to an input."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    made, info = BytesIO(), PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    Image.fromarray(pixels).save(made, "PNG", pnginfo=info)
    return {"name": "noise.png", "mimeType": "image/png", "buffer": made.getvalue()}


def pixels_of(source: str | bytes) -> np.ndarray:
    data = base64.b64decode(source.split(",")[-1]) if isinstance(source, str) else source
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


class Visit:
    """A page of a context of its own, and what it said and asked for."""

    def __init__(self, browser, address: str, answers: dict | None = None, **context):
        """answers: what stands for the server's own answers, by path."""
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.address, self.errors, self.asked, self.requests = address, [], [], []
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.errors.append(line.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: (self.requests.append(request), self.asked.append(request.url)))
        for path, answer in (answers or {}).items():
            self.page.route(f"**{path}", partial(lambda answer, route: route.fulfill(json=answer), answer))
        self.page.goto(address)
        self.until("document.querySelector('[name=sampler_name]').options.length")

    def until(self, expression: str, argument: object = None) -> None:
        """Waits until JavaScript is true. Playwright's own way evaluates text in the page, which the policy forbids."""
        limit = time.monotonic() + WAIT / 1000
        while not self.page.evaluate(expression, argument):
            assert time.monotonic() < limit, expression
            self.page.wait_for_timeout(50)

    def field(self, role: str, name: str):
        return self.page.get_by_role(role, name=name, exact=True)

    def ask(self, prompt: str | None, **fields: object) -> None:
        """Fills the form, fields by their names in a request."""
        if prompt is not None:
            self.field("textbox", "Prompt").fill(prompt)
        for name, value in fields.items():
            field = self.page.locator(f"[name={NAMES.get(name, name)}]")
            if field.get_attribute("type") == "range":
                field = field.locator("xpath=following-sibling::input")
            field.fill(str(value))

    def draw(self, prompt: str, **fields: object):
        """Draws and returns the pictures' `img`s on the stage."""
        self.ask(prompt, **fields)
        self.page.keyboard.press("Control+Enter")
        images = self.picture(prompt)
        images.first.wait_for()
        return images

    def picture(self, name: str):
        """The `img`s on the stage that have a name."""
        return self.page.locator("#sheet").get_by_role("img", name=name)

    def request_of(self, prompt: str | None, **fields: object) -> dict:
        """What the page would send: it is answered here, with 503, before it reaches the server."""
        self.ask(prompt, **fields)
        said, found = len(self.errors), []
        answer = lambda route: (found.append(route.request.post_data_json), route.fulfill(status=503, json={}))
        self.page.route("**/sdapi/v1/*2img", answer)
        self.page.keyboard.press("Control+Enter")
        self.page.get_by_role("alert").wait_for()
        self.page.unroute("**/sdapi/v1/*2img")
        del self.errors[said:]
        return found[0]

    def refusal(self, field) -> str:
        """Waits until a field is marked as wrong, and returns what is said of it."""
        self.until("field => field.getAttribute('aria-invalid') === 'true'", field.element_handle())
        return self.page.locator(f"#{field.get_attribute('aria-describedby')}").text_content()

    @property
    def text(self) -> str:
        """The settings of the shown picture, as the page has them."""
        return self.page.locator("#text").text_content()

    def download(self) -> bytes:
        """The file of the shown picture, as a click on Download saves it."""
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name="Download").click()
        return Path(download.value.path()).read_bytes()

    def sent(self, path: str) -> list[dict]:
        """The bodies of the requests to a path."""
        return [request.post_data_json for request in self.requests if request.url.endswith(path)]


NAMES = {"pictures": "batch_size"}
