"""The web UI's API that tells and sets: lists, options, png-info, extra-single-image."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request

from sdjax.conditioning.text import read_prompts
from sdjax.devices.host import resident
from sdjax.errors import SdjaxError
from sdjax.image.metadata import found_in
from sdjax.image.parameters import parse_parameters
from sdjax.tasks.options import OPTIONS
from sdjax.text.syntax import cut_tags
from sdjax.web.control_units import MODULES
from sdjax.web.fields import PICTURE, Field, json_body, number, one_of, read_fields, text, truth, whole
from sdjax.web.models import Models, files_of, name_of
from sdjax.web.pictures import MOST_PIXELS, in_base64, png, read_picture, resized
from sdjax.web.refusals import Refused
from sdjax.web.samplers import listed_samplers, listed_schedulers
from sdjax.web.service import Service, body_of
from sdjax.web.webui_fields import SETTINGS

UPSCALERS = ("None", "Lanczos", "Nearest")
FROM_FILES = ("/sd-models", "/loras", "/model_list")  # lists that look at files, and may take a while
LATENT_MODES = ("Latent", "Latent (bicubic)")

#: What /options tells beside SETTINGS, and takes if it is the same.
FIXED = {
    "samples_format": "png",
    "grid_format": "png",
    "enable_pnginfo": True,
    "save_images_add_number": True,
    "samples_save": False,
    "grid_save": False,
    "return_grid": False,
    "sd_checkpoint_hash": "",
    "sd_vae": "None",
    "upscaler_for_img2img": "None",
    "face_restoration_model": None,
    "img2img_color_correction": False,
    "eta_noise_seed_delta": 0,
    "live_previews_enable": True,
    "show_progress_every_n_steps": 1,
}

EXTRAS = (
    Field("image", text(PICTURE), None),
    Field("resize_mode", one_of([0, 1]), 0),
    Field("show_extras_results", truth(), True),
    Field("gfpgan_visibility", number(0, 1), 0),
    Field("codeformer_visibility", number(0, 1), 0),
    Field("codeformer_weight", number(0, 1), 0),
    Field("upscaling_resize", number(0.05, 16), 2.0),
    Field("upscaling_resize_w", whole(1, 2**15), 512),
    Field("upscaling_resize_h", whole(1, 2**15), 512),
    Field("upscaling_crop", truth(), True),
    Field("upscaler_1", text(100), "None"),
    Field("upscaler_2", text(100), "None"),
    Field("extras_upscaler_2_visibility", number(0, 1), 0),
    Field("upscale_first", truth(), False),
)


def routes(service: Service) -> APIRouter:
    router, models = APIRouter(), service.models

    def lists(path: str, content: Any) -> None:
        async def answer() -> Any:
            if path.endswith(FROM_FILES):
                return await service.apart(content)
            return content() if callable(content) else content

        router.add_api_route(path, answer, methods=["GET"], response_model=None)

    for name, content in {
        "sd-models": lambda: listed_models(models),
        "samplers": listed_samplers,
        "schedulers": listed_schedulers,
        "upscalers": [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
            for name in UPSCALERS[:2]  # those that hr_upscaler takes, too
        ],
        "latent-upscale-modes": [{"name": name} for name in ("None", *LATENT_MODES)],
        "loras": lambda: [
            {"name": name_of(path.name), "alias": name_of(path.name), "path": path.name, "metadata": {}}
            for path in models.networks()
        ],
        "embeddings": lambda: listed_embeddings(models),
        "hypernetworks": [],
        "face-restorers": [],
        "realesrgan-models": [],
        "prompt-styles": [],
        "sd-vae": [],
        "sd-modules": [],
        "extensions": [],
        "scripts": {"txt2img": ["controlnet"], "img2img": ["controlnet"]},
        "script-info": [
            {"name": "controlnet", "is_alwayson": True, "is_img2img": image, "args": []} for image in (False, True)
        ],
        "cmd-flags": {"api": True, "nowebui": False, "max_pixels": service.most_pixels},
        "memory": told_memory,
        "options": lambda: settings_of(service),
        "sdjax": lambda: about(service),
    }.items():
        lists(f"/sdapi/v1/{name}", content)
    lists("/controlnet/model_list", lambda: {"model_list": [*models.control_files()]})
    lists("/controlnet/module_list", {"module_list": [*MODULES], "module_detail": {}})
    lists("/controlnet/version", {"version": 2})
    lists("/queue/status", lambda: queue_status(service))
    lists("/internal/ping", {})

    @router.post("/sdapi/v1/options", openapi_extra=json_body(SETTINGS))
    async def set_options(request: Request) -> None:
        change_settings(service, await body_of(request))

    @router.post("/sdapi/v1/png-info", openapi_extra=json_body(EXTRAS[:1], "image"))
    async def png_info(request: Request) -> dict[str, Any]:
        given = await body_of(request)
        return await service.apart(read_info, given.get("image"))

    @router.post("/sdapi/v1/extra-single-image", openapi_extra=json_body(EXTRAS, "image"))
    async def extra_single_image(request: Request) -> dict[str, Any]:
        given = await body_of(request)
        return await service.apart(enlarged, given)

    @router.post("/sdapi/v1/refresh-checkpoints")
    @router.post("/sdapi/v1/refresh-loras")
    async def refresh() -> None:
        await service.apart(models.refresh)

    @router.post("/sdapi/v1/refresh-embeddings")
    async def refresh_embeddings() -> None:
        await service.apart(models.refresh_embeddings)

    @router.post("/sdapi/v1/sdjax/tokens")
    async def tokens(request: Request) -> dict[str, Any]:
        given = read_fields((Field("prompt", text(), ""),), await body_of(request))
        return await service.apart(counted, models, given["prompt"])

    return router


def listed_models(models: Models) -> list[dict[str, Any]]:
    def one(title: str) -> dict[str, Any]:
        known = models.hash_of(title, compute=title in models.kept)
        return {
            "title": title,
            "model_name": name_of(Path(title).name),
            "hash": known,
            "sha256": None,
            "filename": title,
            "config": None,
        }

    return [one(title) for title in models.sources]


def listed_embeddings(models: Models) -> dict[str, Any]:
    sd = models.loaded(models.current)
    loaded = {} if sd is None else sd.embeddings
    return {
        "loaded": {
            word: {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": value.shape[-1]}
            | {"vectors": len(value)}
            for word, value in loaded.items()
        },
        "skipped": {path.stem: {} for path in files_of(models.embeddings) if path.stem in models.skipped},
    }


def told_memory() -> dict[str, Any]:
    """Returns the memory of this process and of the first device, in bytes."""
    stats = jax.local_devices()[0].memory_stats() or {}
    ram = {"used": resident(), "free": None, "total": None}
    if "bytes_limit" not in stats:
        return {"ram": ram, "cuda": {"error": "unavailable"}}
    used, total = stats.get("bytes_in_use", 0), stats["bytes_limit"]
    return {
        "ram": ram,
        "cuda": {
            "system": {"free": total - used, "used": used, "total": total},
            "active": {"current": used, "peak": stats.get("peak_bytes_in_use", used)},
        },
    }


def queue_status(service: Service) -> dict[str, Any]:
    with service.scheduler.lock:
        waiting, running = len(service.scheduler.in_queue()), len(service.scheduler.running)
    return {"msg": "estimation", "queue_size": waiting, "running": running, "queue_eta": 0.0}


def settings_of(service: Service) -> dict[str, Any]:
    own = {field.name: service.settings.get(field.name, field.default) for field in SETTINGS}
    return FIXED | own | {"sd_model_checkpoint": service.models.current}


def change_settings(service: Service, given: dict[str, Any]) -> None:
    """Sets what SETTINGS has; other settings are taken if they are as they are. Refused: a value is not right."""
    found = read_fields(SETTINGS, given)
    if (model := found["sd_model_checkpoint"]) is not None:
        title = service.models.find(model)
        if title is None:
            raise Refused("no such model; sd-models lists them", "sd_model_checkpoint", 404, "model_not_found")
        service.models.current = title
    if given.get("CLIP_stop_at_last_layers") is not None:
        service.settings["CLIP_stop_at_last_layers"] = found["CLIP_stop_at_last_layers"]
    if given.get("samples_format", "png") not in ("png", None):
        raise Refused("png expected", "samples_format")


def about(service: Service) -> dict[str, Any]:
    """Returns what the page needs to know: the model's own size, what sides are multiples of, limits, options."""
    models = service.models
    sd = models.loaded(models.current)
    own = {} if sd is None else {"size": sd.config.size, "unit": sd.config.unit, "steps": sd.config.schedule.timesteps}
    own |= {} if sd is None else {"guidance_scale": sd.config.guidance_scale, "few_steps": sd.config.few_steps}
    return {
        "version": version("sdjax"),
        "model": models.current,
        "loaded": sd is not None,
        "max_pixels": service.most_pixels,
        "queue": service.scheduler.most,
        **own,
        "options": {option.name: {"help": option.help, "default": option.default} for option in OPTIONS if option.flag},
    }


def counted(models: Models, prompt: str) -> dict[str, Any]:
    """Returns how many tokens of a prompt the model reads, and how many it could."""
    sd = models.loaded(models.current)
    if sd is None or sd.config.text is None:
        return {"tokens": None, "limit": None, "chunks": None}
    room = sd.config.text.length - 2
    try:
        (found,) = read_prompts(sd, [cut_tags(prompt)[0]], "a1111")
    except SdjaxError:
        raise Refused("a prompt that can be read expected", "prompt") from None
    count = max(sum(map(len, chunks)) for _, chunks in found.parts)
    return {"tokens": count, "limit": room * found.shape[1], "chunks": found.shape[1]}


def read_info(image: Any) -> dict[str, Any]:
    """Returns the settings in a picture."""
    picture = read_picture(image, "image")
    try:
        found = found_in(picture)
    except Exception:  # metadata may be broken in any way
        found = ""
    items = {name: value for name, value in picture.info.items() if isinstance(value, str) and len(value) < 2**16}
    prompt, negative, fields = parse_parameters(found) if found else ("", "", {})
    parameters = {"Prompt": prompt, "Negative prompt": negative, **fields} if found else {}
    return {"info": found, "items": items, "parameters": parameters}


def enlarged(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer of extra-single-image."""
    values = read_fields(EXTRAS, given)
    for name in ("upscaler_1", "upscaler_2"):
        if values[name] not in UPSCALERS:
            raise Refused(f"one of {', '.join(UPSCALERS)} expected", name)
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if values[name]:
            raise Refused("there are no face restorers here; 0 expected", name)
    image = read_picture(values["image"], "image")
    image = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGBA")
    if values["resize_mode"] == 0:
        size = tuple(max(1, round(side * values["upscaling_resize"])) for side in image.size)
    else:
        size = values["upscaling_resize_w"], values["upscaling_resize_h"]
    if size[0] * size[1] > MOST_PIXELS:
        raise Refused(f"a picture of at most {MOST_PIXELS} pixels expected", "upscaling_resize")
    if values["upscaler_1"] != "None" or values["resize_mode"] == 1:
        filter = Image.Resampling.NEAREST if values["upscaler_1"] == "Nearest" else Image.Resampling.LANCZOS
        if values["resize_mode"] == 1 and not values["upscaling_crop"]:
            scale = min(wanted / side for wanted, side in zip(size, image.size, strict=True))
            size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, filter) if values["resize_mode"] == 0 else resized(image, size, 1)
    return {"html_info": "", "image": in_base64(png(image))}
