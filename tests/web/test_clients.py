"""The real clients: webuiapi and openai."""

import base64
import io
import threading
import time
import urllib.request

import pytest
from PIL import Image

import sdjax
from tests.web.serving import difference, in_base64

webuiapi = pytest.importorskip("webuiapi")
openai = pytest.importorskip("openai")

OURS = {"steps": 3, "seed": 5, "guidance_scale": 4.0}


def same(images, wanted):
    assert len(images) == len(wanted)
    assert max(map(difference, images, wanted)) <= 1


# ---- webuiapi: sends every field, eta 1.0 with every sampler among them


@pytest.fixture
def webui(served):
    host, port = served.url.removeprefix("http://").split(":")
    return webuiapi.WebUIApi(host, int(port), sampler="Euler", steps=3)


ASKED = {"prompt": "a red apple", "seed": 5, "cfg_scale": 4, "width": 16, "height": 16}


def test_webui_txt2img(served, webui):
    found = webui.txt2img(**ASKED, batch_size=2, negative_prompt="blue")
    ours = {"sampler": "euler", "num_images": 2, "negative_prompt": "blue"}
    same(found.images, sdjax.txt2img(served.sd, "a red apple", **OURS, **ours))
    assert found.info["all_seeds"] == [5, 6] and found.parameters["steps"] == 3
    ((image,), ours) = webui.txt2img(**ASKED, sampler_name="DDIM").images, {"sampler": "ddim", "eta": 1.0}
    same([image], sdjax.txt2img(served.sd, "a red apple", **OURS, **ours))


def test_webui_img2img_and_inpaint(served, webui, picture, mask):
    found = webui.img2img([picture], **ASKED, denoising_strength=0.7)
    same(found.images, sdjax.img2img(served.sd, "a red apple", picture, 0.7, sampler="euler", **OURS))
    how = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    found = webui.img2img([picture], mask_image=mask, **ASKED, denoising_strength=0.7, **how)
    same(found.images, sdjax.inpaint(served.sd, "a red apple", picture, mask, 0.7, sampler="euler", **OURS))


def test_webui_progress_and_interrupt(webui):
    """A long request is seen, with a picture, and ends with what it has so far."""
    found = []
    thread = threading.Thread(target=lambda: found.append(webui.txt2img(**(ASKED | {"steps": 1000}))))
    thread.start()
    until, seen = time.monotonic() + 60, {}
    while time.monotonic() < until and not (seen.get("progress") and seen["current_image"]):
        seen = webui.get_progress()
    assert 0 < seen["progress"] < 1 and seen["state"]["job_count"] == 1
    assert 0 < seen["state"]["sampling_step"] < seen["state"]["sampling_steps"] == 1000
    assert Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))).size == (16, 16)
    assert webui.interrupt() == {}
    thread.join(60)
    assert len(found[0].images) == 1 and found[0].image.size == (16, 16)
    assert webui.get_progress()["state"]["job_count"] == 0


def test_webui_lists_and_png_info(webui):
    image = webui.txt2img(**ASKED).image
    assert webui.png_info(image).info.startswith("a red apple\nSteps: 3, Sampler: Euler")
    assert webui.util_get_model_names() == ["model", "two"] and webui.util_get_current_model() == "two"
    assert "Euler a" in webui.util_get_sampler_names() and "karras" in webui.util_get_scheduler_names()
    assert webui.get_loras() and webui.get_embeddings()["loaded"] and webui.get_scripts()
    assert webui.get_options()["samples_format"] == "png" and webui.set_options({"samples_format": "png"}) is None
    assert webui.skip() is None and webui.util_wait_for_ready(0.1) is None
    upscaled = webui.extra_single_image(image, upscaler_1="Lanczos", upscaling_resize=2)
    assert upscaled.image.size == (32, 32)
    units = [webuiapi.ControlNetUnit(image=image, module="none", model="net")]
    assert difference(webui.txt2img(**ASKED, controlnet_units=units).image, image) > 1
    assert webui.controlnet_model_list() == ["net"]


# ---- openai


@pytest.fixture
def client(served):
    return openai.OpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=0)


EXTRA = {"steps": 3, "seed": 5, "guidance_scale": 4.0}


def opened(answer):
    return [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in answer.data]


def file(image, name="picture.png"):
    return name, base64.b64decode(in_base64(image)), "image/png"


def test_openai_models(client):
    assert [model.id for model in client.models.list()] == ["two", "model"]
    assert client.models.retrieve("two").id == client.models.retrieve("dall-e-2").id == "two"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


def test_openai_generate(served, client):
    for size in ("16x16", "auto"):
        found = client.images.generate(prompt="a red apple", model="gpt-image-1", n=2, size=size, extra_body=EXTRA)
        same(opened(found), sdjax.txt2img(served.sd, "a red apple", num_images=2, **OURS))
    found = client.images.generate(prompt="a red apple", size="24x8", extra_body=EXTRA)
    assert [image.size for image in opened(found)] == [(24, 8)]
    found = client.images.generate(prompt="a red apple", extra_body={"steps": 4})  # as generate has it
    same(opened(found), sdjax.txt2img(served.sd, "a red apple", steps=4))
    more = EXTRA | {"sampler": "dpmpp_2m", "sigmas": "karras", "negative_prompt": "blue"}
    found = client.images.generate(prompt="a red apple", response_format="url", extra_body=more)
    with urllib.request.urlopen(found.data[0].url) as answer:
        image = Image.open(io.BytesIO(answer.read()))
    ours = {"sampler": "dpmpp_2m", "sigmas": "karras", "negative_prompt": "blue"}
    same([image], sdjax.txt2img(served.sd, "a red apple", **OURS, **ours))
    assert image.info["parameters"].startswith("a red apple\nNegative prompt: blue\nSteps: 3")


def test_openai_edit_and_variation(served, client, picture, mask):
    hole = picture.convert("RGBA")
    hole.putalpha(mask.point(lambda value: 255 - value))
    (wanted,) = sdjax.inpaint(served.sd, "a red apple", picture, mask, **OURS)
    asked = {"prompt": "a red apple", "extra_body": EXTRA}
    edit = lambda **more: opened(client.images.edit(**(asked | more)))
    same(edit(image=file(picture), mask=file(hole)), [wanted])
    from_hole = sdjax.inpaint(served.sd, "a red apple", hole, mask, **OURS)
    same(edit(image=file(hole)), from_hole)  # its own alpha
    same(edit(image=[file(picture)]), sdjax.img2img(served.sd, "a red apple", picture, 0.75, **OURS))
    less = EXTRA | {"strength": 0.5}
    same(edit(image=file(picture), extra_body=less), sdjax.img2img(served.sd, "a red apple", picture, 0.5, **OURS))
    found = client.images.create_variation(image=file(picture), n=2, extra_body=EXTRA)
    same(opened(found), sdjax.img2img(served.sd, "", picture, 0.6, num_images=2, **OURS))


def test_openai_edit_of_a_turned_photo(served, client, picture, mask):
    """The mask has the size of the picture as it is looked at."""
    wide, exif = picture.resize((16, 8)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    hole = Image.new("RGBA", (8, 16), "red")
    hole.putalpha(mask.resize((8, 16), Image.Resampling.NEAREST).point(lambda value: 255 - value))
    stored = io.BytesIO()
    wide.save(stored, "PNG", exif=exif)
    turned = ("photo.png", stored.getvalue(), "image/png")
    found = opened(client.images.edit(prompt="a red apple", image=turned, mask=file(hole), extra_body=EXTRA))
    (wanted,) = sdjax.inpaint(
        served.sd, "a red apple", wide.transpose(Image.Transpose.ROTATE_270), hole.getchannel("A").point(invert), **OURS
    )
    same(found, [wanted])
    with pytest.raises(openai.BadRequestError):
        client.images.edit(prompt="", image=turned, mask=file(hole.resize((16, 8))), extra_body=EXTRA)


def invert(value):
    return 255 - value


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 11}, "n"),
        ({"size": "0x0"}, "size"),
        ({"size": "15x16"}, "size"),
        ({"size": "9999x9999"}, "size"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"sampler": "nobody"}}, "sampler"),
        ({"extra_body": {"lora_folder": "/"}}, None),
    ],
)
def test_openai_refusals(client, more, param):
    asked = {"prompt": "a red apple", "extra_body": {"steps": 1}} | more
    if param is None:  # no such field
        assert client.images.generate(**asked).data
        return
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(**asked)
    assert error.value.param == param and error.value.type == "invalid_request_error"


def test_openai_masks_that_say_nothing(client, picture, mask):
    for wrong in (picture, picture.resize((8, 8)), mask):
        with pytest.raises(openai.BadRequestError) as error:
            client.images.edit(image=file(picture), mask=file(wrong), prompt="a", extra_body=EXTRA)
        assert error.value.param == "mask"
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=[file(picture), file(picture)], prompt="a", extra_body=EXTRA)
    assert error.value.param == "image"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="nobody")
