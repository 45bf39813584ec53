"""OpenAI's images API: models, generations, edits, variations, and the pictures behind their addresses.

What a request does not say is as `sdjax generate` has it. The rows of OPTIONS that have a flag are fields, too.
"""

import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from sdjax.diffusion.tables import samplers
from sdjax.image.masks import read_masks
from sdjax.image.pixels import upright
from sdjax.model.value import StableDiffusion
from sdjax.tasks.option import Option
from sdjax.tasks.options import OPTIONS, TaskOptions
from sdjax.tasks.plans import read
from sdjax.web.ask import Ask
from sdjax.web.describe import text_of
from sdjax.web.fields import (
    Field,
    Kind,
    arguments,
    form_body,
    json_body,
    names_of,
    number,
    one_of,
    read_fields,
    text,
    truth,
    whole,
    word,
)
from sdjax.web.job import Job
from sdjax.web.limits import LARGEST
from sdjax.web.models import Models
from sdjax.web.pictures import in_base64, open_picture, png
from sdjax.web.refusals import Refused, in_fields
from sdjax.web.service import Service, body_of

KEPT, SECONDS = 256, 3600.0  # pictures with addresses, and how long they have them
STAND_IN = ("dall-e-", "gpt-image-")  # models of OpenAI's, for which the served one stands
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
EDIT, VARIATION = 0.75, 0.6  # strengths
TEXTS = ("negative_prompt", "prompt_2", "negative_prompt_2")  # options of any words; other words are names
UNASKED = ("height", "width", "num_images", "lora_folder")  # options that size and n say, or that name a path

MultiPartParser.spool_max_size = LARGEST  # nothing is written to disk


def kind_of(option: Option) -> Kind | None:
    """Returns the kind of a field for the type of a row's flag; None: a request cannot give it."""
    if option.name == "sampler":
        return one_of([*samplers])
    flag = option.flag
    kinds = {str: text() if option.name in TEXTS else word(), int: whole(0, 2**32 - 1), float: number(), bool: truth()}
    return next((found for kind, found in kinds.items() if flag in (kind, kind | None)), None)


#: The rows of OPTIONS that have a flag, as fields.
OWN = tuple(
    Field(option.name, kind, option.default, option.name)
    for option in OPTIONS
    if option.name not in UNASKED and option.flag is not None and (kind := kind_of(option)) is not None
)

SHARED = (
    Field("prompt", text(), None, "prompt"),
    Field("model", text(1000), None),
    Field("n", whole(1, 10), 1, "num_images"),
    Field("size", text(20), "auto", "height"),
    Field("response_format", one_of(["b64_json", "url"]), "b64_json"),
    Field("output_format", one_of(["png"]), "png"),
    Field("stream", truth(), False),
    *OWN,
)
PICTURES = (*SHARED, Field("strength", number(0, 1), None, "strength"))


class Files:
    """Pictures with addresses, in memory: the last KEPT, for SECONDS."""

    def __init__(self):
        self.lock, self.kept = threading.Lock(), OrderedDict()

    def add(self, content: bytes) -> str:
        """Keeps a picture and returns its name, which nobody can guess."""
        name = f"{secrets.token_urlsafe(24)}.png"
        with self.lock:
            self.kept[name] = time.monotonic() + SECONDS, content
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        with self.lock:
            until, content = self.kept.get(name, (0.0, None))
            if time.monotonic() > until:
                self.kept.pop(name, None)
                return None
            return content


class Asked:
    """One request, checked as far as no model is needed. image, mask: PIL."""

    def __init__(self, models: Models, fields: tuple[Field, ...], values: Mapping[str, Any]):
        self.models, self.fields, self.values = models, fields, values
        self.model = served(models, values["model"])
        self.size = size_of(values["size"])
        self.image: Image.Image | None = None
        self.hole: Image.Image | None = None
        if values["stream"]:
            raise Refused("false expected: pictures come whole", "stream")
        if values["seed"] + values["n"] > 2**32:
            raise Refused(f"at most {2**32 - values['n']} expected", "seed")

    def asks(self, sd: StableDiffusion, most: int) -> list[Ask]:
        """Returns the pictures of the request. most: pixels of one."""
        values = self.values
        height, width = self.size or (None, None)
        if self.image is None:
            height, width = (side or sd.config.size for side in (height, width))
        with in_fields({"height": "size", "width": "size", "image": "image"}):
            options = TaskOptions(
                **arguments(self.fields, values) | {"num_images": 1, "height": height, "width": width}
            )
            options = replace(options, lora_folder=self.models.loras)
            if self.image is None:
                for name, side in (("height", height), ("width", width)):
                    sd.config.check_side(name, side)
                pictures = None
            else:
                box = self.image.size if self.size is None else self.size
                if box[0] * box[1] > most:
                    raise Refused(f"a picture of at most {most} pixels expected, or a size", "image")
                options, pictures = read(sd.config, self.image, options)
        if options.height * options.width > most:
            raise Refused(f"at most {most} pixels expected", "size")
        masks = None if self.hole is None else read_masks(self.hole, pictures.shape[1:3])
        own = {"pictures": pictures, "masks": masks, "strength": self.strength()}
        seeds = [values["seed"] + number for number in range(values["n"])]
        return [Ask(values["prompt"], replace(options, seed=seed), **own) for seed in seeds]

    def strength(self) -> float | None:
        """Returns how much may change; 1 in a hole, if nothing is said."""
        if self.image is None:
            return None
        given = self.values.get("strength")
        if given == 0:
            raise Refused("a number above 0 expected", "strength")
        return given if given is not None else 1.0 if self.hole is not None else self.default

    default = EDIT


def served(models: Models, name: str | None) -> str:
    """Returns the title of the model that a request names. Refused: there is none."""
    if name is None or name == "" or name.startswith(STAND_IN):
        return models.current
    found = models.find(name)
    if found is None:
        raise Refused("no such model; /v1/models lists them", "model", 404, "model_not_found")
    return found


def size_of(value: str) -> tuple[int, int] | None:
    """Returns (height, width), or None for auto. Refused: it is neither."""
    if value == "auto":
        return None
    found = SIZE.fullmatch(value)
    if found is None:
        raise Refused('"auto", or width and height as "512x512", expected', "size")
    return int(found[2]), int(found[1])


async def form_of(request: Request, fields: tuple[Field, ...], files: tuple[str, ...]) -> tuple[dict, dict[str, bytes]]:
    """Returns (the fields of a multipart body, its files' contents by name). Refused: it is not so."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused("Content-Type multipart/form-data expected", None, 415, "content_type")
    try:
        form = await request.form(max_files=16, max_fields=100, max_part_size=2**20)
    except HTTPException:
        raise Refused("a body of multipart/form-data expected", None, 400, "form_invalid") from None
    given, found, kinds = {}, {}, {field.name: field.kind for field in fields}
    try:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in files:
                if not isinstance(value, UploadFile):
                    raise Refused("a file expected; addresses and paths are not opened", name)
                if name in found:
                    raise Refused("one picture expected", name)
                found[name] = await value.read()
            elif isinstance(value, UploadFile):
                raise Refused("text expected, not a file", name if name in kinds else None)
            elif name in kinds:
                given[name] = from_text(value, kinds[name])
    finally:
        await form.close()
    return given, found


def from_text(value: str, kind: Kind) -> Any:
    """Returns the text of a form's field as JSON would have it; what is no such number stays text."""
    wanted = kind.schema.get("type")
    if wanted == "boolean":
        return {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)
    if wanted in ("integer", "number") and len(value) <= 100:
        try:
            return int(value) if re.fullmatch(r"[+-]?\d+", value) else float(value)
        except ValueError:
            return value
    return value


def transparent(image: Image.Image) -> Image.Image | None:
    """Returns what is fully transparent in a picture as white on black; None: nothing is."""
    if not image.has_transparency_data:
        return None
    hole = np.asarray(image.convert("RGBA").getchannel("A")) == 0
    return Image.fromarray(np.uint8(hole * 255)) if hole.any() else None


def routes(service: Service) -> APIRouter:
    router, files, models = APIRouter(prefix="/v1"), Files(), service.models

    def listed(title: str) -> dict[str, Any]:
        return {"id": title, "object": "model", "created": 0, "owned_by": "sdjax"}

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        titles = sorted(models.sources, key=lambda title: title != models.current)
        return {"object": "list", "data": [listed(title) for title in titles]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return listed(served(models, name))

    async def drawn(request: Request, asked: Asked) -> JSONResponse:
        names = names_of(asked.fields) | {"width": "size", "image": "image", "mask": "mask", "model": "model"}
        job = Job(
            asked.model,
            lambda sd: asked.asks(sd, service.most_pixels),
            f"image({secrets.token_hex(8)})",
            "v1",
            names,
        )
        made = await service.drawn(request, job, partial(written, job))
        if asked.values["response_format"] == "b64_json":
            data = [{"b64_json": in_base64(one)} for one in made]
        else:
            base = str(request.base_url).rstrip("/")
            data = [{"url": f"{base}/v1/images/files/{files.add(one)}"} for one in made]
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": "png"})

    def written(job: Job, pictures: dict[int, Any]) -> list[bytes]:
        return [png(image, text_of(models, job.model, job.sd, job.asks[n])) for n, image in pictures.items()]

    @router.post("/images/generations", openapi_extra=json_body(SHARED, "prompt"))
    async def generations(request: Request) -> JSONResponse:
        values = read_fields(SHARED, await body_of(request))
        if values["prompt"] is None:
            raise Refused(f"{SHARED[0].kind.right} expected", "prompt")
        return await drawn(request, Asked(models, SHARED, values))

    async def from_picture(request: Request, default: float, prompt: bool) -> JSONResponse:
        given, content = await form_of(request, PICTURES, ("image", "mask") if prompt else ("image",))
        values = read_fields(PICTURES, given)
        if prompt and values["prompt"] is None:
            raise Refused(f"{SHARED[0].kind.right} expected", "prompt")
        if not content.get("image"):
            raise Refused("a picture's file expected", "image")
        asked = Asked(models, PICTURES, values | {"prompt": values["prompt"] or ""})
        asked.default = default
        await service.apart(read_pictures, asked, content, prompt)
        return await drawn(request, asked)

    @router.post("/images/edits", openapi_extra=form_body(PICTURES, ("image", "prompt"), "mask"))
    async def edits(request: Request) -> JSONResponse:
        return await from_picture(request, EDIT, prompt=True)

    @router.post("/images/variations", openapi_extra=form_body(PICTURES, ("image",)))
    async def variations(request: Request) -> JSONResponse:
        return await from_picture(request, VARIATION, prompt=False)

    @router.get("/images/files/{name}")
    async def file(name: str) -> Response:
        content = files.get(name)
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    return router


def read_pictures(asked: Asked, content: Mapping[str, bytes], edits: bool) -> None:
    """Reads the picture of a request, and what is to be painted in it."""
    asked.image = upright(open_picture(content["image"], "image"))
    if "mask" in content:
        mask = upright(open_picture(content["mask"], "mask"))
        if mask.size != asked.image.size:
            raise Refused("a mask of the picture's size expected", "mask")
        asked.hole = transparent(mask)
        if asked.hole is None:
            raise Refused("a mask with transparent pixels expected: they are painted anew", "mask")
    elif edits:
        asked.hole = transparent(asked.image)
