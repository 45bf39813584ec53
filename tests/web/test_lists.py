"""The web UI's lists and options, other models, progress, and what Prometheus reads."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.formats.mapped import write_tensors
from sdjax.web import models
from tests.web.serving import difference, in_base64, opened

SHAPES = {
    "sd-models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    "samplers": {"name", "aliases", "options"},
    "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
    "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
    "latent-upscale-modes": {"name"},
    "loras": {"name", "alias", "path", "metadata"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_lists(served, name):
    found = served.get(f"/sdapi/v1/{name}")
    assert found and all({*one} == SHAPES[name] for one in found)


def test_what_they_hold(served):
    names = {one["name"] for one in served.get("/sdapi/v1/samplers")}
    assert names == {sampler.label or name for name, sampler in sdjax.samplers.items()}
    assert [one["title"] for one in served.get("/sdapi/v1/sd-models")] == ["two", "model"]
    assert served.get("/sdapi/v1/latent-upscale-modes")[0]["name"] == "None"
    assert [one["name"] for one in served.get("/sdapi/v1/loras")] == ["style"]
    assert [*served.get("/sdapi/v1/embeddings")["loaded"]] == ["zorp"]
    assert served.get("/controlnet/model_list") == {"model_list": ["net"]}
    for name in ("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "sd-vae"):
        assert served.get(f"/sdapi/v1/{name}") == []
    assert {*served.get("/sdapi/v1/scripts")} == {"txt2img", "img2img"}
    assert {*served.get("/sdapi/v1/memory")} == {"ram", "cuda"}
    for path in ("/sdapi/v1/script-info", "/sdapi/v1/cmd-flags", "/queue/status", "/controlnet/module_list"):
        served.get(path)
    for path in ("refresh-checkpoints", "refresh-loras", "refresh-embeddings"):
        assert served.ask(f"/sdapi/v1/{path}", b"", method="POST")[:2] == (200, None)


def test_samplers_by_all_their_names(served):
    for one in served.get("/sdapi/v1/samplers"):
        for name in (one["name"], *one["aliases"]):
            answer = served.post("/sdapi/v1/txt2img", {"steps": 2, "sampler_name": name})
            assert json.loads(answer["info"])["sampler_name"] == one["name"]


def test_options_take_what_they_give(served):
    before = served.get("/sdapi/v1/options")
    assert before["sd_model_checkpoint"] == "two" and before["samples_format"] == "png"
    assert served.post("/sdapi/v1/options", before) is None
    assert served.get("/sdapi/v1/options") == before


def test_another_model(served, house):
    """For one request, for all, and not one that is not there; a model that is dropped is loaded again."""
    asked = {"prompt": "a red apple", "steps": 2, "seed": 1, "width": 8, "height": 8}
    other = sdjax.load(house / "models" / "model")
    (wanted,) = sdjax.txt2img(other, "a red apple", steps=2, seed=1, guidance_scale=7, sampler="euler")
    override = {"override_settings": {"sd_model_checkpoint": "model"}}
    answer = served.post("/sdapi/v1/txt2img", asked | override)
    assert difference(opened(answer["images"][0]), wanted) <= 1
    assert json.loads(answer["info"])["sd_model_name"] == "model"
    assert [*served.service.models.kept] == ["model"]
    assert served.get("/sdapi/v1/options")["sd_model_checkpoint"] == "two"
    assert json.loads(served.post("/sdapi/v1/txt2img", asked)["info"])["sd_model_name"] == "two"
    served.post("/sdapi/v1/options", {"sd_model_checkpoint": "model"})
    try:
        assert served.get("/v1/models")["data"][0]["id"] == "model"
        wrong = {"prompt": "a", "steps": 2, "width": 9, "override_settings": {"CLIP_stop_at_last_layers": 9}}
        status, refused, _ = served.ask("/sdapi/v1/txt2img", wrong)  # by a model that has to be loaded first
        assert status == 422 and refused["detail"][0]["loc"][1] in ("width", "override_settings")
    finally:
        served.post("/sdapi/v1/options", {"sd_model_checkpoint": "two"})
    served.post("/sdapi/v1/txt2img", {"steps": 1})


def test_new_embeddings(served, house):
    """refresh-embeddings finds a word that was not there when the model was loaded."""
    word = np.random.default_rng(2).normal(size=(1, served.sd.config.text.width)).astype(np.float32)
    path = house / "embeddings" / "quux.safetensors"
    write_tensors(path, {"emb_params": word})
    try:
        assert "quux" not in served.get("/sdapi/v1/embeddings")["loaded"]
        served.post("/sdapi/v1/refresh-embeddings", {})
        assert {"quux", "zorp"} <= {*served.get("/sdapi/v1/embeddings")["loaded"]}
    finally:
        path.unlink()


def test_files_that_do_not_load(served, house):
    """The refusal names the field that named the file."""
    broken = [house / "loras" / "broken.safetensors", house / "models" / "broken.safetensors"]
    broken.append(house / "controls" / "broken.safetensors")
    for path in broken:
        path.write_bytes(b"no tensors")
    served.service.models.refresh()
    unit = {"controlnet": {"args": [{"model": "broken", "image": in_base64(Image.new("RGB", (16, 16)))}]}}
    model = {"override_settings": {"sd_model_checkpoint": "broken"}}
    try:
        for body, field in (
            ({"prompt": "a <lora:broken:1>"}, ["prompt"]),
            (model, ["override_settings", "sd_model_checkpoint"]),
            ({"alwayson_scripts": unit}, ["alwayson_scripts"]),
        ):
            status, answer, _ = served.ask("/sdapi/v1/txt2img", {"steps": 1} | body)
            assert (status, answer["detail"][0]["loc"]) == (422, ["body", *field]), answer
        status, answer, _ = served.ask("/v1/images/generations", {"prompt": "", "model": "broken", "steps": 1})
        assert (status, answer["error"]["param"]) == (400, "model")
        assert served.ask("/v1/models/-")[0] == 404
    finally:
        for path in broken:
            path.unlink()
        served.service.models.refresh()


def test_slow_files_stop_nobody(served, house, monkeypatch):
    """While a model's file is hashed, others are answered."""
    before, begun = models.source_hash, threading.Event()

    def slow(source):
        begun.set()
        time.sleep(1)
        return before(source)

    served.post("/sdapi/v1/txt2img", {"steps": 1})  # the model is loaded
    monkeypatch.setattr(models, "source_hash", slow)
    served.service.models.hashes.clear()
    with ThreadPoolExecutor(1) as pool:
        listed = pool.submit(served.get, "/sdapi/v1/sd-models")
        assert begun.wait(10)
        served.get("/healthz")
        assert not listed.done() and listed.result()


def test_idle(served):
    found = served.get("/sdapi/v1/progress")
    assert (found["progress"], found["state"]["job_count"], found["current_image"]) == (0, 0, None)
    assert served.get("/internal/ping") == {} and served.get("/internal/pending-tasks") == {"size": 0, "tasks": []}
    found = served.post("/internal/progress", {"id_task": "nobody's"})
    assert not found["active"] and not found["queued"] and not found["completed"]
    for path in ("interrupt", "skip"):
        for body in (b"", b"{}"):
            status, answer, _ = served.ask(f"/sdapi/v1/{path}", body, method="POST")
            assert (status, answer) == (200, {} if path == "interrupt" else None)


def test_the_servers_own(served):
    found = served.get("/sdapi/v1/sdjax")
    assert (found["size"], found["unit"], found["max_pixels"], found["model"]) == (16, 2, 64 * 64, "two")
    assert found["options"]["steps"]["default"] == 50
    assert served.post("/sdapi/v1/sdjax/tokens", {"prompt": "apple " * 30})["chunks"] > 1
    fields = served.get("/openapi.json")["paths"]["/sdapi/v1/txt2img"]["post"]["requestBody"]["content"]
    assert fields["application/json"]["schema"]["properties"]["steps"]["maximum"] == 1000


def test_health_and_metrics(served):
    assert served.get("/healthz") == {"status": "ok"}
    served.post("/sdapi/v1/txt2img", {"steps": 1})
    served.ask("/sdapi/v1/txt2img", {"steps": 0})
    status, text, headers = served.ask("/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [-+.\de]+', line) for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert float(values["sdjax_queue_length"]) == 0 and float(values["sdjax_batch_size_count"]) > 0
    assert float(values['sdjax_requests_total{interface="sdapi",status="422"}']) > 0
    assert float(values["sdjax_process_memory_bytes"]) > 1e6
