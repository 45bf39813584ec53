"""Hub ids without the network: a cache laid out as huggingface_hub lays it out, and a hub on this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as constants
import jax
import numpy as np
import pytest

import sdjax
from sdjax.errors import SdjaxError
from sdjax.text.bpe import train_bpe
from sdjax.weights import hub
from sdjax.weights.hub import chosen_weights, fetch_folder, is_hub_id
from tests.narrow import NARROW, random_model_params
from tests.text.test_tokenizer import captions

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with all that published ones hold besides."""
    path = tmp_path_factory.mktemp("published") / "model"
    tokenizer = train_bpe(captions(), 580, path.parent / "tokenizer")
    sdjax.save(sdjax.StableDiffusion(NARROW, random_model_params(NARROW), tokenizer), path)
    for name in (
        "README.md",
        "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors",
        "safety_checker/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_flax_model.msgpack",
        "text_encoder/pytorch_model.bin",
        "feature_extractor/preprocessor_config.json",
    ):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"not to be read")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache, repo, folder, names=None):
    """`folder` in the cache: blobs by their hash, a snapshot of links, the reference of the main branch."""
    root = cache / f"models--{repo.replace('/', '--')}"
    for path in filter(Path.is_file, folder.rglob("*")):
        name = path.relative_to(folder)
        if names and not str(name).startswith(names):
            continue
        blob, link = root / "blobs" / hashlib.sha1(path.read_bytes()).hexdigest(), root / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return root / "snapshots" / COMMIT


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def test_what_looks_like_an_id():
    assert all(map(is_hub_id, ["CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-2-1-base", "a/b.c_d"]))
    for no in (
        "emoji",
        "a/b/c",
        "/a/b",
        "./a",
        "../a",
        "a/b.safetensors",
        "a/b.ckpt",
        "a/",
        "a b/c",
        "a//b",
        "~/a",
        "a--b/c",
        "a/b..c",
        "ä/b",
        "a/" + "b" * 200,
        "",
        "C:\\a",
        "https://a/b",
    ):
        assert not is_hub_id(no), no


def test_only_what_is_needed_is_chosen():
    def files(*names):
        return {*names, "unet/config.json", "safety_checker/model.safetensors", "v1-5-pruned.safetensors"}

    whole = [
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    worse = [
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    ]
    assert chosen_weights(files(*whole, *worse)) == whole
    assert chosen_weights(files(*worse)) == worse[:3]
    assert chosen_weights(files(*worse[3:])) == worse[4:] + worse[3:4]


def test_a_cached_model_is_loaded_offline(cache, folder, caplog):
    put(cache, "org/name", folder)
    sd = sdjax.load("org/name")
    assert sd.config == replace(NARROW, name="org/name") and same(sd.params, random_model_params(NARROW))
    assert sdjax.tokenize(sd, "a red apple").shape == (1, 12)
    assert "org/name: taken from the cache, since HF_HUB_OFFLINE is set" in caplog.text


def test_what_is_cached_in_part_or_not_at_all(cache, folder, tmp_path, monkeypatch):
    names = ("model_index.json", "unet", "vae/config.json", "text_encoder", "scheduler", "tokenizer")
    snapshot = put(cache, "org/part", folder, names)
    with pytest.raises(SdjaxError, match=f"{snapshot}/vae: no diffusion_pytorch_model"):
        sdjax.load("org/part")
    monkeypatch.chdir(tmp_path)
    for source, match in (
        ("org/none", "no such folder or file here, no such model in .*HF_HUB_OFFLINE is set"),
        ("runs/export.safetensors", "no such folder or file; name a diffusers folder"),
        (tmp_path / "none", "no such folder or file; name a diffusers folder"),
        ("x" * 300, "no such folder or file; name a diffusers folder"),
        (None, "source is None, should be a string or a path"),
    ):
        with pytest.raises(SdjaxError, match=match) as caught:
            sdjax.load(source)
        assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_comes_first(cache, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "org" / "name")
    assert sdjax.load("org/name").config.name == "name"


def test_a_hub_that_does_not_answer_is_given_up(cache, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: time.sleep(3))
    begun = time.monotonic()
    with pytest.raises(SdjaxError, match=r"org/name: .*and the hub \(https.*\) did not answer within 0\.2 seconds"):
        fetch_folder("org/name")
    snapshot = put(cache, "org/name", folder)
    assert fetch_folder("org/name") == snapshot and time.monotonic() - begun < 2


# ---- a hub of our own

LOAD = """
import sys, time, sdjax
for name in sys.argv[1:]:
    begun = time.monotonic()
    try:
        print("loaded", sdjax.load(name).config.name)
    except sdjax.SdjaxError as error:
        print("refused", str(error).replace(chr(10), "|"))
    print("seconds", time.monotonic() - begun)
"""


class Hub(BaseHTTPRequestHandler):
    """The hub's three answers: what a model is, its files, one file. `models` is repo -> folder."""

    models: dict[str, Path]
    asked: list[str]

    def log_message(self, *args):
        pass

    def reply(self, content: bytes, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2 * api : 2 * api + 2]), parts[2 * api + 2 :]
        if repo == "org/gated":
            return self.reply(b"{}", 403, X_Error_Code="GatedRepo")
        if repo not in self.models:
            return self.reply(b"{}", 404, X_Error_Code="RepoNotFound")
        folder = self.models[repo]
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if api and rest[:1] == ["tree"]:
            size = lambda name: (folder / name).stat().st_size
            oid = lambda name: hashlib.sha1((folder / name).read_bytes()).hexdigest()
            found = [{"type": "file", "path": name, "size": size(name), "oid": oid(name)} for name in names]
            return self.reply(json.dumps(found).encode(), Content_Type="application/json")
        if api:
            info = {
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
                "private": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
            }
            return self.reply(json.dumps(info).encode(), Content_Type="application/json")
        name = "/".join(rest[2:])
        if name not in names:
            return self.reply(b"", 404, X_Error_Code="EntryNotFound")
        self.asked.append(name)
        content = (folder / name).read_bytes()
        return self.reply(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET


def load(tmp_path, endpoint, *sources):
    offline = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env = {
        **offline,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_DISABLE_XET": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", LOAD, *sources], env=env, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    return lines[::2], [float(line.split()[1]) for line in lines[1::2]]


def test_a_model_is_downloaded_once_and_only_what_is_needed(folder, tmp_path):
    single = tmp_path / "single"
    single.mkdir()
    (single / "dream.safetensors").write_bytes(b"x")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Local", (Hub,), {"models": {"org/name": folder, "org/single": single}, "asked": []})
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    said, _ = load(tmp_path, endpoint, "org/name", "org/none", "org/gated", "org/single")
    assert said[0] == "loaded org/name"
    for line, words in zip(
        said[1:], ("the hub has no such model", "accepted its licence", "dream.safetensors"), strict=True
    ):
        assert line.startswith("refused org/") and words in line and "|" not in line
    kept = {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    tokenizer = {name for name in server.RequestHandlerClass.asked if name.startswith("tokenizer/")}
    assert set(server.RequestHandlerClass.asked) - tokenizer == kept and tokenizer >= {"tokenizer/vocab.json"}

    server.shutdown()
    server.server_close()
    said, seconds = load(tmp_path, endpoint, "org/name", "org/other")
    assert said[0] == "loaded org/name"
    assert said[1].startswith("refused org/other: no such folder or file here") and "cannot be reached" in said[1]
    assert seconds[1] < 10
