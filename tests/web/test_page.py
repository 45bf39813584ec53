"""The page in a browser: it draws, cancels, paints masks, reads settings back, shows refusals where they belong.

Each visit ends with a look at what the page said and asked for: no errors, nothing from another host.
"""

import base64
import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.scripts import CONFIG
from tests.web.browser import Visit, chromium, picture_file, pixels_of
from tests.web.conftest import TWO

pytestmark = pytest.mark.browser
SIZE = TWO.size
REFUSED = "Failed to load resource: the server responded with a status of 4"  # what Chromium itself says of each


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visits(browser, served):
    """visits(**context): a new visit. Afterwards: the page said nothing, but of refusals, and asked nobody else."""
    made = []

    def visit(*answers, **context):
        made.append(Visit(browser, served.url, *answers, **context))
        return made[-1]

    yield visit
    for one in made:
        one.context.close()
        assert not [text for text in one.errors if not text.startswith(REFUSED)]
        assert not [url for url in one.asked if not url.startswith((served.url, "data:image/", f"blob:{served.url}"))]


@pytest.fixture
def visit(visits):
    return visits()


def test_draws(visit):
    visit.page.get_by_role("combobox", name="Sampler").select_option("Euler a")
    picture = visit.draw("a red apple", seed=5, pictures=2, steps=3)
    assert picture.count() == 2
    for i in range(2):
        own = "i => [i.naturalWidth, i.naturalHeight, i.getAttribute('width'), i.width > 2 * i.naturalWidth]"
        assert picture.nth(i).evaluate(own) == [SIZE, SIZE, str(SIZE), True]
    assert visit.text.startswith("a red apple\nSteps: 3, Sampler: Euler a, ")
    assert "Seed: 5," in visit.text
    visit.page.get_by_role("button", name="seed 6", exact=True).click()
    assert "Seed: 6," in visit.text
    image = Image.open(BytesIO(visit.download()))
    assert (image.size, image.text["parameters"]) == ((SIZE, SIZE), visit.text)
    assert "Done: 2 pictures, seed 5" in visit.page.locator("#status").text_content()


def test_sliders(visit):
    steps, guidance = visit.field("slider", "Steps"), visit.field("slider", "Guidance scale")
    steps.fill("2")
    steps.press("ArrowRight")
    guidance.fill("3")
    guidance.press("ArrowLeft")
    visit.draw("sliders")
    assert "Steps: 3," in visit.text and "CFG scale: 2.5," in visit.text
    visit.field("spinbutton", "Steps, as a number").fill("150")  # more than the slider reaches
    assert steps.input_value() == "100"
    assert visit.request_of("not sent")["steps"] == 150


def test_hires(visit):
    visit.page.locator("#hires > summary").click()
    visit.page.get_by_role("checkbox", name="Enlarge it").check()
    visit.field("slider", "Upscale by").fill("1.5")
    visit.field("slider", "Hires strength").fill("0.5")
    image = visit.draw("large", steps=2)
    assert image.evaluate("image => image.naturalWidth") == 1.5 * SIZE
    assert "Denoising strength: 0.5," in visit.text and "Hires upscale: 1.5," in visit.text


def test_names(visit):
    """What a screen reader says of the controls, and the order of the first ones."""
    names = {
        "textbox": ("Prompt", "Negative prompt"),
        "slider": ("Steps", "Guidance scale"),
        "spinbutton": ("Seed", "Width", "Height", "Pictures"),
        "combobox": ("Sampler", "Schedule"),
        "button": ("Generate", "Cancel", "Dark theme"),
    }
    for role, each in names.items():
        for name in each:
            assert visit.field(role, name).is_visible(), name
    visit.field("textbox", "Prompt").focus()
    for name in ("prompt", "negative", "generate", "cancel", "sampler", "scheduler", "steps"):
        assert visit.page.evaluate("document.activeElement.id") == name
        visit.page.keyboard.press("Tab")


def test_cancel(visit):
    visit.ask("long", steps=1000, pictures=8)
    visit.field("button", "Generate").click()
    bar = visit.page.get_by_role("progressbar", name="Drawing")
    visit.until("document.getElementById('progress').hasAttribute('aria-valuenow')")
    assert bar.is_visible()
    visit.page.keyboard.press("Escape")
    visit.until("document.getElementById('status').textContent.startsWith('Stopped early: 8 pictures')")
    (asked,), (ended,) = visit.sent("/sdapi/v1/txt2img"), visit.sent("/sdapi/v1/interrupt")
    assert ended == {"id_task": asked["force_task_id"]}  # this request alone; it was answered with its last step
    assert not bar.is_visible()
    assert visit.field("button", "Cancel").get_attribute("aria-disabled") == "true"
    visit.draw("afterwards", steps=2, pictures=1)  # it still draws


def test_mask(visit):
    """What is painted is drawn anew, all else stays as it was, to the bit."""
    file = picture_file()
    visit.page.locator("#source > summary").click()
    visit.page.get_by_label("Picture to start from").set_input_files(file)
    board = visit.page.get_by_role("application", name="Mask")
    visit.field("slider", "Brush size").fill("2")
    visit.field("slider", "Strength").fill("1")
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"] / SIZE, box["y"] + y * box["height"] / SIZE)
    visit.page.mouse.move(*at(1, 2))
    visit.page.mouse.down()
    visit.page.mouse.move(*at(SIZE - 1, 2), steps=8)
    visit.page.mouse.up()
    visit.draw("stripe", steps=3, seed=1)
    sent = visit.sent("/sdapi/v1/img2img")[-1]
    before, mask = pixels_of(sent["init_images"][0]), pixels_of(sent["mask"])
    np.testing.assert_array_equal(before, pixels_of(file["buffer"]))
    painted = mask[..., 0] == 255
    assert painted[1:3, 2:-2].all() and not painted[4:].any() and not painted[0].any()
    after = pixels_of(visit.download())
    np.testing.assert_array_equal(after[~painted], before[~painted])
    assert (after[painted] != before[painted]).any()

    visit.page.get_by_role("button", name="Invert").click()
    assert (pixels_of(visit.request_of("not sent")["mask"])[..., 0] == 255).sum() == (~painted).sum()
    visit.page.get_by_role("button", name="Undo").click()
    board.press("Control+z")
    assert "mask" not in visit.request_of("not sent")
    board.press(" ")  # the keyboard paints, too
    assert "mask" in visit.request_of("not sent")
    visit.page.get_by_role("button", name="Clear").click()
    assert "mask" not in visit.request_of("not sent")


def test_use_these(visit):
    """A picture's settings, its source and its mask come back into the form: the same request draws it again."""
    visit.page.locator("#source > summary").click()
    visit.page.get_by_label("Picture to start from").set_input_files(picture_file())
    visit.page.get_by_role("application", name="Mask").press(" ")
    visit.draw("first", steps=2, seed=3)
    (first,) = visit.sent("/sdapi/v1/img2img")
    visit.page.get_by_role("button", name="Remove picture").click()
    visit.draw("second", steps=3, seed=4)
    visit.page.get_by_role("button", name="Show first, seed 3").click()
    visit.page.get_by_role("button", name="Use these settings").click()
    visit.until("!document.getElementById('mask-on').hidden")
    again = visit.request_of(None)
    assert {**again, "force_task_id": None} == {**first, "force_task_id": None}


TEXT = (
    "a snail, slow\nNegative prompt: blurry\nSteps: 4, Sampler: Euler, Schedule type: Karras, CFG scale: 2.5, "
    "Seed: 77, Size: 8x16, Variation seed: 9, Variation seed strength: 0.25"
)
DROP = """([data, name]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
    for (const type of ["dragenter", "dragover", "drop"])
        document.getElementById("view").dispatchEvent(
            new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def test_dropped_picture(visit):
    visit.ask("typed before", seed=1)
    file = picture_file(text=TEXT)
    visit.page.evaluate(DROP, [base64.b64encode(file["buffer"]).decode(), "snail.png"])
    visit.page.get_by_text("Settings of snail.png are in the form").wait_for()
    assert visit.text == TEXT
    visit.page.get_by_role("button", name="Put the old ones back").click()
    assert visit.field("textbox", "Prompt").input_value() == "typed before"
    visit.page.get_by_role("button", name="Use these settings").click()
    asked = visit.request_of(None)
    assert (
        asked
        | {
            "prompt": "a snail, slow",
            "negative_prompt": "blurry",
            "steps": 4,
            "sampler_name": "Euler",
            "scheduler": "karras",
            "cfg_scale": 2.5,
            "seed": 77,
            "width": 8,
            "height": 16,
            "subseed": 9,
            "subseed_strength": 0.25,
        }
        == asked
    )
    visit.page.get_by_label("Picture whose settings are read").set_input_files(picture_file())
    visit.page.get_by_text("noise.png has no settings in it").first.wait_for()
    visit.page.get_by_label("Picture whose settings are read").set_input_files(
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    visit.page.get_by_role("alert").get_by_text("no picture").wait_for()


def test_refusals_at_their_field(visit):
    """The first is the server's own, of a field; the second the browser sees itself, by the server's limits."""
    visit.page.get_by_role("combobox", name="Sampler").evaluate(
        "s => s.add(new Option('Unknown', 'unknown', true, true))"
    )
    visit.ask("refused", steps=2)
    visit.page.keyboard.press("Control+Enter")
    sampler = visit.page.get_by_role("combobox", name="Sampler")
    refusal = visit.refusal(sampler)
    assert "ampler" in refusal
    assert sampler.evaluate("s => s === document.activeElement")
    assert "Sampler" in visit.page.get_by_role("alert").text_content()

    sampler.select_option("Euler")
    visit.ask("refused", steps=5000)
    count = len(visit.sent("/sdapi/v1/txt2img"))
    visit.page.keyboard.press("Control+Enter")
    assert "1000" in visit.refusal(visit.field("slider", "Steps"))
    assert not visit.page.locator("#sampler[aria-invalid]").count()
    assert len(visit.sent("/sdapi/v1/txt2img")) == count

    visit.ask("refused", steps=2, width=512, height=512)
    visit.page.keyboard.press("Control+Enter")
    assert "width times height" in visit.refusal(
        visit.page.locator("#width[aria-invalid], #height[aria-invalid]").first
    )


def test_sheet(visit):
    visit.page.locator("#grid > summary").click()
    visit.page.get_by_label("A picture for each").select_option("guidance scale")
    visit.page.get_by_label("Values, with commas between them").fill("1, x")
    visit.ask("compare", steps=2, seed=8)
    visit.page.keyboard.press("Control+Enter")
    assert "commas" in visit.refusal(visit.page.get_by_label("Values, with commas between them"))
    visit.page.get_by_label("Values, with commas between them").fill("1, 2.5, 4")
    visit.draw("compare")
    asked = visit.sent("/sdapi/v1/txt2img")
    assert sorted(one["cfg_scale"] for one in asked) == [1, 2.5, 4]
    assert {one["seed"] for one in asked} == {8}
    image = Image.open(BytesIO(visit.download()))
    assert image.text["parameters"] == visit.text
    assert visit.text.endswith('Grid: "guidance-scale=1,2.5,4"')
    assert image.width > 3 * 112 and np.asarray(image.convert("L")).std() > 10


def test_pickers(visit):
    """Two models, a LoRA, an embedding, a control: each is in the request, and each changes the picture."""
    visit.draw("apple", steps=2, seed=1)
    plain = pixels_of(visit.download())
    visit.page.locator("#words > summary").click()
    visit.field("spinbutton", "Weight").fill("0.5")
    visit.page.get_by_role("button", name="Add LoRA").click()
    assert visit.field("textbox", "Prompt").input_value() == "apple <lora:style:0.5>"
    visit.page.keyboard.press("Control+Enter")
    visit.picture("apple <lora:style:0.5>, seed 1").wait_for()
    assert (pixels_of(visit.download()) != plain).any()
    visit.page.get_by_role("button", name="Remove LoRA style 0.5").click()
    visit.page.get_by_role("button", name="Add embedding").click()
    assert visit.field("textbox", "Prompt").input_value() == "apple zorp"

    visit.ask("controlled")
    visit.page.locator("#controls > summary").click()
    visit.page.get_by_role("button", name="Add a control").click()
    visit.page.keyboard.press("Control+Enter")
    assert "picture" in visit.refusal(visit.page.locator("#units [data-field=image]"))
    visit.page.locator("#units [data-field=image]").set_input_files(picture_file())
    visit.page.locator("#units img").wait_for()
    visit.draw("controlled", steps=2, seed=1)
    (unit,) = visit.sent("/sdapi/v1/txt2img")[-1]["alwayson_scripts"]["controlnet"]["args"]
    assert (unit["model"], unit["module"], unit["weight"]) == ("net", "none", 1)
    visit.page.get_by_role("button", name="Remove control").click()

    visit.page.get_by_role("combobox", name="Model", exact=True).select_option("model")
    image = visit.draw("smaller", steps=2)
    assert image.evaluate("image => image.naturalWidth") == CONFIG.size


def test_queue(visits):
    """What waits says so, and leaves the queue when it is cancelled; what is drawn goes on."""
    first, second = visits(), visits()
    first.ask("long", steps=1000, batch_size=16)
    first.page.keyboard.press("Control+Enter")
    first.until("document.getElementById('progress').hasAttribute('aria-valuenow')")
    second.ask("waits", steps=2, width=2 * SIZE)
    second.page.keyboard.press("Control+Enter")
    second.page.get_by_text("Waiting: next in the queue").first.wait_for()
    second.page.get_by_role("button", name="Cancel").click()
    second.until("document.getElementById('status').textContent === 'Cancelled'")
    assert first.page.get_by_role("progressbar").is_visible()
    first.page.keyboard.press("Escape")
    first.until("/^(Stopped early|Cancelled)/.test(document.getElementById('status').textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(visits, scheme):
    empty = {
        "/sdapi/v1/loras": [],
        "/sdapi/v1/embeddings": {"loaded": {}},
        "/controlnet/model_list": {"model_list": []},
    }
    visit = visits(empty, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    for part in visit.page.locator("details:visible > summary").all():
        part.click()
    visit.draw("on a phone", steps=2, pictures=2)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    assert not visit.page.locator("#words").is_visible() and not visit.page.locator("#controls").is_visible()
    paper = lambda: visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    before, theme = paper(), visit.page.get_by_role("button", name="Dark theme")
    assert theme.get_attribute("aria-pressed") == json.dumps(scheme == "dark")
    theme.click()
    assert paper() != before
    visit.page.reload()
    assert paper() != before
    assert visit.page.locator("#empty").is_visible()
    visit.until("document.getElementById('prompt').value === 'on a phone'")  # the form is kept


def test_policy(visit):
    """No inline script or style runs, and the strictest policy would do."""
    html = visit.page.context.request.get(visit.address).text()
    assert "style=" not in html and "<style" not in html and " on" + "click" not in html
    policy = visit.page.context.request.get(visit.address).headers["content-security-policy"]
    assert "default-src" in policy and "unsafe-eval" not in policy
    assert visit.page.locator("html").get_attribute("lang") == "en"
    assert "sdjax" in visit.page.title()
