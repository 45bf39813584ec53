"""The web UI's API: pictures are the library's, answers have the web UI's shapes."""

import json

import numpy as np
import pytest

import sdjax
from sdjax.tasks.parameters import understand
from sdjax.web.webui_fields import IMG2IMG, TXT2IMG
from tests.web.serving import difference, in_base64, opened

APPLE = {"prompt": "a red apple", "steps": 3, "seed": 5, "cfg_scale": 4}
OURS = {"steps": 3, "seed": 5, "guidance_scale": 4, "sampler": "euler"}


def drawn(served, path="txt2img", **body):
    answer = served.post(f"/sdapi/v1/{path}", APPLE | body)
    return [opened(image) for image in answer["images"]], answer


def same(images, wanted):
    assert len(images) == len(wanted)
    assert max(map(difference, images, wanted)) <= 1


@pytest.mark.parametrize(
    ("body", "ours"),
    [
        ({}, {}),
        ({"n_iter": 2, "negative_prompt": "blue"}, {"num_images": 2, "negative_prompt": "blue"}),
        ({"sampler_name": "DPM++ 2M"}, {"sampler": "dpmpp_2m", "sigmas": "karras"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Uniform"}, {"sampler": "dpmpp_2m"}),
        ({"sampler_index": "Euler a Karras"}, {"sampler": "euler_a", "sigmas": "karras"}),
        ({"sampler_name": "k_dpm_2", "scheduler": "normal"}, {"sampler": "dpm2", "sigmas": "karras"}),
        ({"eta": 1.0}, {}),  # Euler takes none
        ({"sampler_name": "DDIM", "eta": 1.0, "scheduler": "karras"}, {"sampler": "ddim", "eta": 1.0}),
        ({"width": 24, "height": 8}, {"width": 24, "height": 8}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1, "unknown": 3}}, {}),
        ({"prompt": "a red apple <lora:style:0.8>"}, {"prompt": "a red apple <lora:style:0.8>"}),
        ({"prompt": "zorp"}, {"prompt": "zorp"}),
    ],
    ids=str,
)
def test_a_picture_is_the_librarys(served, house, body, ours):
    ours = {"prompt": "a red apple", "lora_folder": house / "loras"} | OURS | ours
    images, _ = drawn(served, **body)
    same(images, sdjax.txt2img(served.sd, **ours))


def test_a_loras_tag_changes_the_picture(served):
    plain, styled = (drawn(served, prompt=f"a red apple{tag}")[0][0] for tag in ("", "<lora:style:1>"))
    assert difference(plain, styled) > 1


def test_subseeds_count_up(served):
    images, answer = drawn(served, subseed=8, subseed_strength=0.4, batch_size=2)
    ours = [
        sdjax.txt2img(served.sd, "a red apple", variation_seed=n, variation_strength=0.4, **OURS)[0] for n in (8, 9)
    ]
    same(images, ours)
    info = json.loads(answer["info"])
    assert (info["all_seeds"], info["all_subseeds"]) == ([5, 5], [8, 9])


def test_img2img(served, picture):
    images, answer = drawn(served, "img2img", init_images=[in_base64(picture)], denoising_strength=0.7)
    same(images, sdjax.img2img(served.sd, "a red apple", picture, 0.7, **OURS))
    assert answer["parameters"]["init_images"] is None
    large = picture.resize((20, 20))
    body = {"init_images": [f"data:image/png;base64,{in_base64(large)}"], "width": 16, "height": 16}
    images, answer = drawn(served, "img2img", include_init_images=True, **body)
    same(images, sdjax.img2img(served.sd, "a red apple", large, width=16, height=16, **OURS))
    assert answer["parameters"]["init_images"] == body["init_images"]


INPAINT = {"inpaint_full_res": False, "inpainting_fill": 1}


@pytest.mark.parametrize(("strength", "blur"), [(1, 0), (0.7, 0), (0.7, 3)])
def test_inpaint(served, picture, mask, strength, blur):
    body = {"init_images": [in_base64(picture)], "mask": in_base64(mask), "mask_blur": blur, **INPAINT}
    images, _ = drawn(served, "img2img", denoising_strength=strength, **body)
    same(images, sdjax.inpaint(served.sd, "a red apple", picture, mask, strength, blur, **OURS))
    body |= {"mask": in_base64(mask.point(lambda value: 255 - value)), "inpainting_mask_invert": 1}
    same(drawn(served, "img2img", denoising_strength=strength, **body)[0], images)


def test_fills_begin_differently(served, picture, mask):
    """What is put into the hole: colours around it, the picture, noise, nothing; outside all stays."""
    body = {"init_images": [in_base64(picture)], "mask": in_base64(mask), "mask_blur": 0, "inpaint_full_res": False}
    found = [drawn(served, "img2img", denoising_strength=0.4, inpainting_fill=n, **body)[0][0] for n in range(4)]
    kept = np.asarray(mask) == 0
    for image in found:
        np.testing.assert_array_equal(np.asarray(image)[kept], np.asarray(picture)[kept])
    assert all(difference(one, other) > 1 for i, one in enumerate(found) for other in found[:i])


def test_the_masked_region_alone(served, picture, mask):
    """It is cut out, drawn at width x height, and put back; what is not white stays as it was."""
    large = picture.resize((48, 48))
    white = mask.resize((48, 48)).point(lambda value: 255 * (value > 127))
    body = {"init_images": [in_base64(large)], "mask": in_base64(white), "mask_blur": 0, "inpainting_fill": 1}
    ((image,), _) = drawn(served, "img2img", denoising_strength=0.7, inpaint_full_res_padding=4, **body)
    assert image.size == large.size
    kept = np.asarray(white) == 0
    np.testing.assert_array_equal(np.asarray(image)[kept], np.asarray(large)[kept])
    left, top, right, bottom = white.getbbox()
    box = (left - 4, top - 4, right + 4, bottom + 4)
    wide, high = box[2] - box[0], box[3] - box[1]
    box = (box[0], box[1] - (wide - high) // 2, box[2], box[1] - (wide - high) // 2 + wide)
    cut = [one.crop(box).resize((16, 16), how) for one, how in ((large, 1), (white, 0))]
    (painted,) = sdjax.inpaint(served.sd, "a red apple", *cut, 0.7, **OURS)
    wanted = large.copy()
    wanted.paste(painted.resize((wide, wide), 1), box[:2], white.crop(box))
    assert difference(image, wanted) <= 1


@pytest.mark.parametrize(
    ("body", "ours"),
    [
        ({"hr_scale": 2}, {}),
        ({"hr_resize_x": 32, "hr_upscaler": "Latent (bicubic)"}, {}),
        ({"hr_upscaler": "Lanczos", "hr_second_pass_steps": 2}, {"upscale": "pixels", "hires_steps": 2}),
    ],
)
def test_hires(served, body, ours):
    images, answer = drawn(served, enable_hr=True, denoising_strength=0.7, **body)
    ours = {"scale": 2, "strength": 0.7} | ours
    same(images, sdjax.hires(served.sd, "a red apple", **ours, **OURS))
    info = json.loads(answer["info"])  # of the first walk, as the web UI tells it
    assert (info["width"], info["height"]) == (16, 16) and images[0].size == (32, 32)


def test_hires_covers_another_shape(served):
    ((image,), _) = drawn(served, enable_hr=True, hr_resize_x=32, hr_resize_y=30)
    assert image.size == (32, 30)


def test_controls(served, picture):
    control = sdjax.load_control(served.service.models.controls / "net", served.sd)
    unit = {"image": in_base64(picture), "model": "net [12345678]", "weight": 0.5, "guidance_end": 0.8}
    body = {"alwayson_scripts": {"ControlNet": {"args": [unit | {"control_mode": "My prompt is more important"}]}}}
    images, answer = drawn(served, **body)
    ours = {"control": control, "control_image": picture, "control_scale": 0.5, "control_interval": (0, 0.8)}
    same(images, sdjax.txt2img(served.sd, "a red apple", **ours, control_mode="prompt", **OURS))
    assert "ControlNet 0" in json.loads(answer["info"])["infotexts"][0]
    assert difference(images[0], drawn(served)[0][0]) > 1
    off = {"controlnet": {"args": [unit | {"enabled": False}]}}
    same(drawn(served, alwayson_scripts=off)[0], drawn(served)[0])


def test_all_fields_are_echoed(served, picture):
    _, answer = drawn(served, width=None, save_images=True, send_images=False, hr_cutoff=4, styles=["x"])
    assert {*answer["parameters"]} == {field.name for field in TXT2IMG}
    assert answer["images"] == [] and answer["parameters"]["save_images"] is True
    assert (answer["parameters"]["seed"], answer["parameters"]["batch_size"]) == (5, 1)
    _, answer = drawn(served, "img2img", init_images=[in_base64(picture)])
    assert {*answer["parameters"]} == {field.name for field in IMG2IMG}


def test_a_seed_of_minus_one_is_told(served):
    images, answer = drawn(served, seed=-1, batch_size=2)
    info = json.loads(answer["info"])
    assert answer["parameters"]["seed"] == -1 and info["seed"] >= 0
    assert info["all_seeds"] == [info["seed"], info["seed"] + 1]
    again, _ = drawn(served, seed=info["seed"] + 1)
    same(again, images[1:])


def test_a_pictures_text_draws_it_again(served):
    ((image,), answer) = drawn(served, sampler_name="DPM++ 2M SDE", negative_prompt="blue", subseed_strength=0.3)
    text = image.info["parameters"]
    assert text == json.loads(answer["info"])["infotexts"][0]
    found, rest = understand(text)
    assert not {*rest} - {"Model", "Model hash"}
    found = {name: value for name, value in found.items() if name not in ("dtype", "strength")}
    same([image], sdjax.txt2img(served.sd, **found))
    answer = served.post("/sdapi/v1/txt2img", {"infotext": text})  # what it says holds where nothing else does
    same([opened(answer["images"][0])], [image])
    assert served.post("/sdapi/v1/png-info", {"image": in_base64_of(answer)})["info"] == text


def test_a_text_sets_what_no_field_does(served):
    """Of a second walk it tells the first one's size; options that no field has hold, and so does the clip skip."""
    asked = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5, "hr_upscaler": "Lanczos"}
    (large,), _ = drawn(served, **asked)
    text = large.info["parameters"]
    assert large.size == (32, 32) and "Size: 16x16" in text
    same([opened(served.post("/sdapi/v1/txt2img", {"infotext": text})["images"][0])], [large])
    for more, ours in (
        ("Guidance rescale: 0.5", {"guidance_rescale": 0.5}),
        ("Timestep spacing: trailing", {"spacing": "trailing"}),
    ):
        text = f"a red apple\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 5, Size: 16x16, {more}"
        again = opened(served.post("/sdapi/v1/txt2img", {"infotext": text})["images"][0])
        wanted = {"steps": 3, "sampler": "euler", "guidance_scale": 4, "seed": 5} | ours
        same([again], sdjax.txt2img(served.sd, "a red apple", **wanted))
        assert more in again.info["parameters"]
    text = "a\nSteps: 3, Sampler: Euler, Seed: 5, Clip skip: 2"  # this tower has one layer
    assert served.ask("/sdapi/v1/txt2img", {"infotext": text})[1]["detail"][0]["loc"][1] == "override_settings"
    long = "a" * 9_990 + "\nSteps: 3, Sampler: Euler, Seed: 5, Size: 16x16"
    status, answer, _ = served.ask("/sdapi/v1/txt2img", {"infotext": long, "send_images": False})
    assert status == 200, answer


def in_base64_of(answer):
    return answer["images"][0]


def test_png_info(served, picture):
    ((image,), answer) = drawn(served, negative_prompt="blue")
    found = served.post("/sdapi/v1/png-info", {"image": answer["images"][0]})
    assert found["info"] == image.info["parameters"] and found["items"]["parameters"] == found["info"]
    assert found["parameters"]["Prompt"] == "a red apple" and found["parameters"]["Seed"] == "5"
    assert served.post("/sdapi/v1/png-info", {"image": in_base64(picture)})["info"] == ""


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"upscaling_resize": 2, "upscaler_1": "Nearest"}, (32, 32)),
        ({"upscaling_resize": 1.5, "upscaler_1": "Lanczos"}, (24, 24)),
        ({"upscaling_resize": 2}, (16, 16)),  # None enlarges nothing
        ({"resize_mode": 1, "upscaling_resize_w": 24, "upscaling_resize_h": 16, "upscaler_1": "Lanczos"}, (24, 16)),
    ],
)
def test_extra_single_image(served, picture, body, size):
    found = opened(served.post("/sdapi/v1/extra-single-image", {"image": in_base64(picture), **body})["image"])
    assert found.size == size
    if body.get("upscaler_1") == "Nearest":
        np.testing.assert_array_equal(np.asarray(found)[::2, ::2], np.asarray(picture))
