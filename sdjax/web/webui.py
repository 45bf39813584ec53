"""The web UI's API that draws: txt2img, img2img, progress, interrupt, skip."""

import json
import time
from functools import partial
from typing import Any

import anyio
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

import sdjax
from sdjax.image.sheets import contact_sheet
from sdjax.web.describe import all_seeds, text_of
from sdjax.web.fields import is_text, json_body
from sdjax.web.job import Job
from sdjax.web.pictures import in_base64, png
from sdjax.web.refusals import Refused
from sdjax.web.service import Service, body_of
from sdjax.web.webui_ask import Wanted
from sdjax.web.webui_fields import IMG2IMG, TXT2IMG

PREVIEW_WAIT = 0.5  # seconds that an answer waits for a preview that it asked for
TICK = 0.02


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    async def drawn(request: Request, image: bool) -> JSONResponse:
        given = await body_of(request)
        wanted = await service.apart(Wanted, service.models, service.settings, given, image, service.most_pixels)
        del given
        job = wanted.job()
        return JSONResponse(await service.drawn(request, job, partial(answered, service, wanted, job)))

    @router.post("/sdapi/v1/txt2img", openapi_extra=json_body(TXT2IMG))
    async def txt2img(request: Request) -> JSONResponse:
        return await drawn(request, image=False)

    @router.post("/sdapi/v1/img2img", openapi_extra=json_body(IMG2IMG, "init_images"))
    async def img2img(request: Request) -> JSONResponse:
        return await drawn(request, image=True)

    @router.get("/sdapi/v1/progress")
    async def progress(request: Request) -> dict[str, Any]:
        name, skip = request.query_params.get("id_task"), request.query_params.get("skip_current_image", "false")
        job = service.scheduler.oldest() if name is None else service.scheduler.find(name)
        image = None
        if job is not None and skip.lower() not in ("true", "1"):
            image = await preview(service, job)
        return {**state(service, job), "current_image": image, "textinfo": None}

    @router.post("/internal/progress")
    async def internal_progress(request: Request) -> dict[str, Any]:
        given = await body_of(request)
        name = given.get("id_task")
        if not is_text(name, 200):
            raise Refused("the id of a task expected", "id_task")
        job, done = service.scheduler.find(name), name in service.finished
        image = None
        if job is not None and job.active and given.get("live_preview", True) is not False:
            image = await preview(service, job)
        shown, places = given.get("id_live_preview", -1), [one.name for one in service.scheduler.in_queue()]
        place = places.index(name) if name in places else None
        number = job.previews if job is not None else -1
        waits = f"In queue: {place + 1}/{len(places)}" if place is not None else None
        return {
            "active": bool(job is not None and job.active),
            "queued": place is not None,
            "completed": bool(done and job is None),
            "progress": None if job is None else job.progress,
            "eta": None if job is None else eta(job),
            "live_preview": f"data:image/png;base64,{image}" if image and number != shown else None,
            "id_live_preview": number,
            "textinfo": waits or ("Waiting..." if job is None and not done else None),
            "position": place,
        }

    @router.get("/internal/pending-tasks")
    async def pending_tasks() -> dict[str, Any]:
        names = [job.name for job in service.scheduler.in_queue()]
        return {"size": len(names), "tasks": names}

    async def ends(request: Request, skip: bool) -> Any:
        given = await body_of(request, empty=True)
        name = given.get("id_task")
        if name is not None and not is_text(name, 200):
            raise Refused("the id of a task expected", "id_task")
        service.scheduler.interrupt(name, skip)

    @router.post("/sdapi/v1/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        await ends(request, skip=False)
        return {}

    @router.post("/sdapi/v1/skip")
    async def skip(request: Request) -> None:
        await ends(request, skip=True)

    return router


def eta(job: Job) -> float:
    """Returns the seconds that a job may still take; 0 if that is not known."""
    done = job.progress
    return (time.monotonic() - job.began) * (1 - done) / done if job.began and done > 0 else 0.0


def state(service: Service, job: Job | None) -> dict[str, Any]:
    """Returns how far a job is, as the web UI says it; None is idle."""
    if job is None:
        found = {"job": "", "job_count": 0, "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
    else:
        found = {
            "job": job.name,
            "job_count": len(job.asks or ()),
            "job_no": len(job.pictures),
            "sampling_step": job.step,
            "sampling_steps": job.total if job.active else 0,
        }
    began = "0" if job is None else time.strftime("%Y%m%d%H%M%S")
    flags = {
        "skipped": bool(job and job.skipped),
        "interrupted": bool(job and job.interrupted),
        "stopping_generation": bool(service.scheduler.closed),
        "job_timestamp": began,
    }
    return {
        "progress": 0.0 if job is None else job.progress,
        "eta_relative": 0.0 if job is None else eta(job),
        "state": flags | found,
    }


async def preview(service: Service, job: Job) -> str | None:
    """Returns what a job's pictures look like now, as a PNG in base64; None: there is nothing to be seen yet.

    It is decoded because of this call, at the next step.
    """
    if not job.active:
        return None
    before = job.previews
    job.wanted = time.monotonic()
    with anyio.move_on_after(PREVIEW_WAIT):
        while job.previews == before and not job.answered.done():
            await anyio.sleep(TICK)
    seen = job.preview
    if not seen:
        return None
    return await service.apart(lambda: in_base64(png(seen[0] if len(seen) == 1 else contact_sheet(seen))))


def answered(service: Service, wanted: Wanted, job: Job, pictures: dict[int, Any]) -> dict[str, Any]:
    """Returns the answer for pictures that are drawn."""
    values, models = wanted.values, service.models
    sd = job.sd
    asks, images, texts = [], [], []
    for number, image in pictures.items():
        ask = job.asks[number]
        image = image if ask.after is None else ask.after(image)
        text = text_of(models, job.model, sd, ask)
        asks.append(ask)
        texts.append(text)
        images.append(image)
    first = asks[0] if asks else job.asks[0]
    echo = dict(wanted.echo)
    if "init_images" in echo and not echo["include_init_images"]:
        echo |= {"init_images": None, "mask": None}
    info = {
        "prompt": first.prompt,
        **all_seeds(asks),
        "negative_prompt": first.options.negative_prompt,
        "seed": first.options.seed,
        "subseed": first.options.variation_seed,
        "subseed_strength": first.options.variation_strength,
        "width": first.options.width,
        "height": first.options.height,
        "sampler_name": sdjax.samplers[first.options.sampler].label or first.options.sampler,
        "cfg_scale": values["cfg_scale"],
        "steps": values["steps"],
        "batch_size": values["batch_size"],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": models.hash_of(job.model),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.strength if first.hires is None else first.hires.strength,
        "extra_generation_params": first.texts,
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.options.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": "sdjax",
    }
    sent = [in_base64(png(image, text)) for image, text in zip(images, texts, strict=True)]
    return {"images": sent if values["send_images"] else [], "parameters": echo, "info": json.dumps(info)}
