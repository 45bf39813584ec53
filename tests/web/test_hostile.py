"""Requests that no server should obey: each is refused within seconds, by field, without its value; then it draws."""

import base64
import io
import json
import socket
import struct
import time
import zlib

import pytest
from PIL import Image

from sdjax.web.images_api import OWN, PICTURES
from sdjax.web.images_api import SHARED as IMAGES
from sdjax.web.webui_fields import IMG2IMG, SETTINGS, TXT2IMG
from tests.web.serving import in_base64

MARK = "ECHOED"
LARGE = MARK + "x" * 100_000
INFINITE, NOT_A_NUMBER, HALF = 1e400, float("nan"), "\ud800"


def wrong_values(kind):
    """Values that a field of a kind must not take."""
    schema = kind.schema
    if "enum" in schema:
        return ["nobody", MARK, [], {"a": 1}, NOT_A_NUMBER, 77]
    if schema["type"] in ("integer", "number"):
        ends = [schema[name] + step for name, step in (("minimum", -1), ("maximum", 1)) if name in schema]
        whole = [2.5] if schema["type"] == "integer" else []
        return ["20", MARK, True, [1], {}, INFINITE, -INFINITE, NOT_A_NUMBER, 10**60, *ends, *whole]
    if schema["type"] == "string":
        many = ["x" * (schema["maxLength"] + 1)] if schema["maxLength"] < 2**20 else []
        names = [f"a: {MARK}", f"{MARK}': a"] if schema["maxLength"] == 100 and kind.right == "a name" else []
        return [5, True, [MARK], {"a": MARK}, HALF, "a\0b", *many, *names]
    if schema["type"] == "boolean":
        return ["yes", 7, [], MARK]
    return [MARK, 5, True, LARGE]


def refused(served, path, body, field, *, statuses=(400, 404, 413, 415, 422), **how):
    """Returns what is wrong with the answer to a request that has to be refused; None: nothing."""
    began = time.monotonic()
    status, answer, _ = served.ask(path, body, timeout=20, **how)
    text = json.dumps(answer) if not isinstance(answer, bytes) else answer.decode("latin-1")
    problems = []
    if path.startswith("/v1") and status == 422:
        problems.append("422")
    if status not in statuses:
        problems.append(f"status {status}")
    elif field is not None:
        found = answer["error"]["param"] if path.startswith("/v1") else ".".join(answer["detail"][0]["loc"][1:])
        if field not in (found, found.partition(".")[0] if found else found):
            problems.append(f"names {found}")
    if len(text) > 10_000 or MARK in text or "Traceback" in text or "/work" in text or "site-packages" in text:
        problems.append("tells too much")
    if time.monotonic() - began > 5:
        problems.append("slow")
    return (path, field, str(body)[:80], problems, text[:300]) if problems else None


def test_the_longest_prompt_is_drawn(served):
    """10,000 characters, many chunks of this small tower."""
    assert served.post("/sdapi/v1/txt2img", {"prompt": "apple " * 1666, "steps": 1})["images"]


def draws(served):
    assert len(served.post("/sdapi/v1/txt2img", {"steps": 1})["images"]) == 1


def test_fields(served, picture):
    """Every field with every kind of wrong value: more than 300 requests."""
    base = {"steps": 1}
    image = {"init_images": [in_base64(picture)]}
    asked = []
    for table, path, own in ((TXT2IMG, "/sdapi/v1/txt2img", base), (IMG2IMG, "/sdapi/v1/img2img", base | image)):
        for field in table:
            if path.endswith("img2img") and field in TXT2IMG:
                continue
            asked += [(path, own | {field.name: value}, field.name) for value in wrong_values(field.kind)]
    for field in SETTINGS:
        for value in wrong_values(field.kind):
            settings = {"override_settings": {field.name: value}}
            asked.append(("/sdapi/v1/txt2img", base | settings, f"override_settings.{field.name}"))
            asked.append(("/sdapi/v1/options", {field.name: value}, field.name))
    for field in IMAGES:
        own = {"prompt": "a", "steps": 1}
        asked += [("/v1/images/generations", own | {field.name: v}, field.name) for v in wrong_values(field.kind)]
    assert len(asked) > 300
    problems = [problem for problem in (refused(served, *one) for one in asked) if problem]
    assert not problems, (len(problems), problems[:5])
    for value in (f"a {MARK}", "a.b"):  # names, but of nothing
        for name in ("sigmas", "spacing", "syntax"):
            body = {"prompt": "a", "steps": 1, name: value}
            problem = refused(served, "/v1/images/generations", body, name)
            assert not problem, problem
    assert served.post("/v1/images/generations", {"prompt": "a", "steps": 1, "stream": False})["data"]
    draws(served)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"width": 15}, "width"),
        ({"width": 32768, "height": 32768}, "width"),
        ({"width": 66, "height": 64}, "width"),
        ({"enable_hr": True, "hr_scale": 16}, "hr_scale"),
        ({"enable_hr": True, "hr_resize_x": 8}, "hr_resize_x"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "hr_upscaler"),
        ({"enable_hr": True, "denoising_strength": 0}, "denoising_strength"),
        ({"batch_size": 100, "n_iter": 100}, "n_iter"),
        ({"seed": 2**32 - 1, "batch_size": 2}, "seed"),
        ({"sampler_name": MARK}, "sampler_name"),
        ({"sampler_index": MARK}, "sampler_index"),
        ({"override_settings": {"sd_model_checkpoint": MARK}}, "override_settings.sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, "override_settings.sd_model_checkpoint"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 60}}, "override_settings"),
        ({"script_name": MARK}, "script_name"),
        ({"tiling": True}, "tiling"),
        ({"restore_faces": True}, "restore_faces"),
        ({"alwayson_scripts": {MARK: {"args": [1]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": MARK}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [MARK]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [{}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "net"}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "../net"}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "net", "weight": MARK}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "net", "image": MARK}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "net", "module": MARK}]}}}, "alwayson_scripts"),
        ({"prompt": "<lora:nobody:1>"}, "prompt"),
        ({"prompt": "<lora:../../etc/passwd:1>"}, "prompt"),
        ({"prompt": f"<lora:style:{MARK}>"}, "prompt"),
        ({"infotext": MARK}, "infotext"),
        ({"prompt": "a AND " * 1600}, "prompt"),
    ],
    ids=str,
)
def test_what_does_not_fit(served, body, field):
    assert not refused(served, "/sdapi/v1/txt2img", {"steps": 1} | body, field)


def png(width, height, *chunks):
    """A PNG whose head tells a size."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def tiff():
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "TIFF")
    return out.getvalue()


def pictures(picture, address):
    whole = base64.b64decode(in_base64(picture))
    bomb = png(16, 16, (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(2**27))))
    contents = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        png(60000, 60000),
        png(0, 5),
        png(40000, 900),
        whole[: len(whole) // 2],
        whole[:20],
        bomb,
        tiff(),
        b"GIF89a",
        b"\0" * 1000,
        b"RIFF\0\0\0\0WEBP",
        b"\xff\xd8\xff\xe0" + bytes(100),
        b"BM" + bytes(60),
    ]
    texts = [
        f"http://{address}/{MARK}.png",
        f"https://{address}/a.png",
        "//localhost/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "..",
        "data:text/html;base64,PGI+",
        "data:image/png,abc",
        "data:image/png;base64,",
        MARK,
        "ä" * 10,
        "A" * 5,
        "====",
    ]
    return contents, texts + [base64.b64encode(content).decode() for content in contents]


def test_pictures(served, picture):
    """Addresses and paths are never opened; what is no whole picture of the named formats is refused by its field."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        contents, texts = pictures(picture, f"127.0.0.1:{trap.getsockname()[1]}")
        fine, asked = in_base64(picture), []
        for text in [*texts, 5, None, {}, [fine]]:
            asked += [
                ("/sdapi/v1/img2img", {"steps": 1, "init_images": [text]}, "init_images"),
                ("/sdapi/v1/png-info", {"image": text}, "image"),
                ("/sdapi/v1/extra-single-image", {"image": text}, "image"),
            ]
            if text is not None:  # no mask
                asked.append(("/sdapi/v1/img2img", {"steps": 1, "init_images": [fine], "mask": text}, "mask"))
        asked += [
            ("/sdapi/v1/img2img", {"steps": 1, "init_images": wrong}, "init_images") for wrong in ([], [fine] * 3)
        ]
        asked.append(("/sdapi/v1/img2img", {"steps": 1}, "init_images"))
        problems = [refused(served, *one) for one in asked]
        assert not [problem for problem in problems if problem]
        assert len(asked) > 100
        problems = [refused(served, *form(path, {"prompt": "a"}, {"image": content})) for content in contents]
        problems += [refused(served, *form(path, {"prompt": "a", "image": text}, {})) for text in texts[:5]]
        assert not [problem for problem in problems if problem]
        trap.settimeout(0.1)
        with pytest.raises(TimeoutError):
            trap.accept()
    draws(served)


path = "/v1/images/edits"


def form(path, fields, files, field="image"):
    """Returns the arguments of `refused` for a multipart body."""
    edge, parts = "edge", []
    for name, value in fields.items():
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for name, content in files.items():
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="../../{MARK}.png"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    body = b"".join(parts) + f"--{edge}--\r\n".encode()
    return path, Body(body, edge), field


class Body(bytes):
    """A multipart body, which knows its type."""

    def __new__(cls, content, edge):
        found = super().__new__(cls, content)
        found.kind = f"multipart/form-data; boundary={edge}"
        return found


def test_forms(served, picture):
    fine, problems = base64.b64decode(in_base64(picture)), []
    wrong = {
        "n": "2.5",
        "size": "bigger",
        "steps": MARK,
        "seed": "-1",
        "strength": "nan",
        "sampler": MARK,
        "model": MARK,
    }
    assert {*wrong} <= {field.name for field in PICTURES} and OWN
    for name, value in wrong.items():
        fields = {"prompt": "a", "steps": "1"} | {name: value}
        problems.append(refused(served, *form(path, fields, {"image": fine}, name)))
        problems.append(refused(served, *form("/v1/images/variations", fields, {"image": fine}, name)))
    problems.append(refused(served, *form(path, {"steps": "1"}, {"image": fine}, "prompt")))
    problems.append(refused(served, *form(path, {"prompt": "a"}, {}, "image")))
    problems.append(refused(served, *form(path, {"prompt": "a"}, {"image": fine, "n": b"1"}, "n")))
    problems.append(refused(served, *form(path, {"prompt": "a"}, {"image": b""}, "image")))
    for body in (
        b"",
        b"--edge",
        b"--edge\r\n\r\n",
        bytes(1000),
        b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--",
    ):
        problems.append(refused(served, path, Body(body, "edge"), None))
    problems.append(refused(served, path, b"{}", None))
    assert not [problem for problem in problems if problem]


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations", "/sdapi/v1/options"])
def test_bodies(served, path):
    bodies = [b"", b"{", b"[" * 100_000, b'{"steps":' * 50_000, b"null", b"5", b'"a"', b"[]", b"\xff\xfe\xfa", b"{}}"]
    bodies += [b'{"prompt": "\xff"}', b'{"prompt": "a" "b"}', b"<xml/>", b"a=b", bytes(100)]
    bodies += [b'{"prompt": [' + b"[]," * 300_000 + b"5]}"]
    problems = [refused(served, path, body, None) for body in bodies]
    huge = b'{"prompt": "a", "steps": ' + b"1" * 10_000 + b"}"
    if "options" not in path:
        problems.append(refused(served, path, huge, "steps"))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"):
        headers = {"Content-Type": kind}
        problems.append(refused(served, path, b'{"steps": 1, "prompt": "a"}', None, headers=headers))
    zipped = {"Content-Encoding": "gzip"}
    problems.append(refused(served, path, zlib.compress(bytes(10**6)), None, headers=zipped))
    assert not [problem for problem in problems if problem]
    draws(served)


def test_addresses(served):
    for path in ("/nothing", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/v1/images/files/x", "/v1/images/files/../x"):
        status, answer, _ = served.ask(path)
        assert status == 404 and len(json.dumps(answer)) < 200, path
    for path, method in (("/sdapi/v1/txt2img", "GET"), ("/healthz", "POST"), ("/", "DELETE")):
        assert served.ask(path, method=method)[0] == 405
    assert served.ask("/docs")[0] == 404
