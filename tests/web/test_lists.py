"""The web UI's lists and options, other models, progress, and what Prometheus reads."""

import json
import re

import pytest

import sdjax
from tests.web.serving import difference, opened

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
