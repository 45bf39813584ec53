"""Caches say what the networks say, are made once, go on where they were killed, and never serve another model."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.data.order import Chosen
from sdjax.data.picture import to_pixels
from sdjax.data.source import open_data
from sdjax.errors import SdjaxError
from sdjax.model.functions import vae_posterior
from sdjax.model.value import digest
from sdjax.text.bpe import train_bpe
from sdjax.training import cache
from sdjax.training.cache import cached_latents, cached_rows, cached_states
from tests.narrow import NARROW, random_model_params
from tests.text.test_tokenizer import captions

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIG = replace(NARROW, size=8, text=replace(NARROW.text, layers=1), vae=replace(NARROW.vae, channels=(8,), blocks=1))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    tokenizer = train_bpe(captions(), CONFIG.text.vocab_size, tmp_path_factory.mktemp("tokenizer"))
    return sdjax.StableDiffusion(CONFIG, random_model_params(CONFIG), tokenizer)


@pytest.fixture
def data(tmp_path):
    """11 pictures of two aspect ratios."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (24, 24 if i % 3 else 48, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{i}.png", "text": f"a {i % 4} red"}) for i in range(11))
    )
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Files of 4 rows, networks that take 2 at once."""
    monkeypatch.setattr(cache, "CHUNK", 2)
    monkeypatch.setattr(cache, "FILES", 3)


def chosen(rows, epochs=None, group=0):
    return Chosen(np.array(rows), np.array([0] * len(rows) if epochs is None else epochs), group)


def direct(sd, source, rows, epoch=0, group=0):
    pixels = np.stack([source.view(int(row), epoch, group)["pixels"] for row in rows])
    return np.concatenate(sdjax.vae_moments(sd, to_pixels(pixels)), -1)


def close(moments, want):
    assert moments.dtype == np.float16
    np.testing.assert_allclose(moments, want, atol=2e-3 * np.abs(want).max())


def test_latents_are_the_vae_s(sd, data, tmp_path):
    source = open_data(data, 8)
    latents = cached_latents(sd, source, tmp_path)
    moments, index = latents(chosen([7, 0, 10, 7]))
    close(moments, direct(sd, source, [7, 0, 10, 7]))
    assert index.tolist() == [7, 0, 10, 7]
    (folder,) = tmp_path.glob("latents-8x8-0-*")
    assert [np.load(path).shape for path in sorted(folder.iterdir())] == [(4, 8, 8, 8), (4, 8, 8, 8), (3, 8, 8, 8)]


def test_latents_of_buckets_and_views(sd, data, tmp_path):
    source = open_data(data, 8, crop="random", flip=True, seed=3, buckets=2)
    latents = cached_latents(sd, source, tmp_path, views=2)
    assert len(source.groups) == 2
    for group, rows in enumerate(source.groups):
        epochs = [0, 1, 2, 5][: len(rows)]
        moments, index = latents(chosen(rows[:4], epochs, group))
        want = [direct(sd, source, [row], epoch % 2, group)[0] for row, epoch in zip(rows, epochs, strict=False)]
        close(moments, np.stack(want))
        assert index.tolist() == rows[:4].tolist()
    with pytest.raises(AssertionError):  # the views differ
        close(latents(chosen(rows[:2], [1, 1], group))[0], np.stack(want[:1] * 2))


def test_a_cache_is_computed_once_and_only_for_what_made_it(sd, data, tmp_path, monkeypatch):
    encoded = []
    monkeypatch.setattr(cache, "vae_posterior", lambda *a: encoded.append(1) or vae_posterior(*a))

    def made(model, **options):
        encoded.clear()
        cached_latents(model, open_data(data, options.pop("size", 8), **options), tmp_path)
        return len(encoded)

    assert made(sd) == 6 and made(sd) == 0
    assert made(sd, flip=True) == 6 and made(sd, crop="random") == 6 and made(sd, size=16) == 6
    assert made(sd, crop="random", seed=1) == 6 and made(sd, seed=1) == 0
    params = jax.tree.map(lambda leaf: leaf, sd.params)
    params["vae"]["encoder"]["conv_in"]["bias"] = params["vae"]["encoder"]["conv_in"]["bias"].at[0].add(1e-3)
    assert made(replace(sd, params=params)) == 6
    assert made(replace(sd, params=sd.params | {"unet": {}})) == 0
    assert made(replace(sd, dtype=np.dtype("float16"))) == 6
    stat = os.stat(data / "3.png")
    os.utime(data / "3.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert made(sd) == 6


def test_a_bucket_s_cache_does_not_serve_all_pictures(sd, data, tmp_path):
    """Of the same shape, and with as many rows as the first files of all pictures."""
    buckets = cached_latents(sd, open_data(data, 8, buckets=2), tmp_path)
    assert len(buckets.groups[0]) >= 4 and buckets.groups[0].tolist() != list(range(len(buckets.groups[0])))
    source = open_data(data, 8)
    close(cached_latents(sd, source, tmp_path)(chosen(range(11)))[0], direct(sd, source, range(11)))
    rows = buckets.groups[0]
    close(cached_latents(sd, source, tmp_path)(chosen(rows))[0], buckets(chosen(rows))[0].astype("float32"))


def test_a_killed_run_goes_on_with_the_next_file(sd, data, tmp_path, monkeypatch):
    source, calls = open_data(data, 8), []

    def killed(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return vae_posterior(*arguments)

    monkeypatch.setattr(cache, "vae_posterior", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_latents(sd, source, tmp_path)
    (folder,) = tmp_path.glob("latents-*")
    assert [path.name for path in folder.iterdir()] == ["00000.npy"]
    calls.append(0)  # three and one: nothing is killed any more
    close(cached_latents(sd, source, tmp_path)(chosen(range(11)))[0], direct(sd, source, range(11)))
    assert len(calls) == 4 + 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:20],
        lambda b: b + b"}",
        lambda b: b"x" + b,
        lambda b: b.replace(b"(4, 8", b"(3, 8"),
        lambda b: b.replace(b"<f2", b"<f4"),
    ],
)
def test_damaged_files_are_made_again(sd, data, tmp_path, damage):
    source = open_data(data, 8)
    cached_latents(sd, source, tmp_path)
    (path,) = tmp_path.glob("latents-*/00000.npy")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    latents = cached_latents(sd, source, tmp_path)
    close(latents(chosen(range(11)))[0], direct(sd, source, range(11)))
    assert path.read_bytes() == whole


def test_bad_pictures_have_their_stand_ins_also_from_the_disk(sd, data, tmp_path):
    for name in ("3.png", "10.png"):
        (data / name).write_bytes(b"")
    for run in ("first", "second"):
        source = open_data(data, 8, 0.2, tmp_path / run)
        moments, index = cached_latents(sd, source, tmp_path / "cache")(chosen([3, 10, 4]))
        assert index.tolist() == [4, 0, 4]
        close(moments, direct(sd, source, [4, 0, 4]))
        names = [json.loads(line)["path"] for line in (tmp_path / run / "bad_data.jsonl").read_text().splitlines()]
        assert sorted(Path(name).name for name in names) == ["10.png", "3.png"]
    with pytest.raises(SdjaxError, match="2 of 11 pictures"):  # the same cache, and less patience
        cached_latents(sd, open_data(data, 8, 0.1, tmp_path / "third"), tmp_path / "cache")


def test_overflow_names_the_picture(sd, data, tmp_path, monkeypatch):
    def overflow(*arguments):
        mean, logvar = vae_posterior(*arguments)
        return mean.at[0].set(1e6), logvar

    monkeypatch.setattr(cache, "vae_posterior", overflow)
    with pytest.raises(SdjaxError, match=r"model: its VAE's latents of 0\.png are not finite in float16"):
        cached_latents(sd, open_data(data, 8), tmp_path)
    assert not list(tmp_path.glob("latents-*/*"))


def test_text_states(sd, data, tmp_path, monkeypatch):
    texts = ["a 3 red", "", "b", "a 3 red", "x" * 400, "(a:1.3) [b] \\ AND c", "é \udcff"]
    texts[-1] = texts[-1].encode("utf-8", "replace").decode()
    states, row = cached_states(sd, texts, tmp_path)
    want = sdjax.encode_prompt(sd, texts, syntax="plain").context
    np.testing.assert_allclose(states[row], want, atol=5e-3)
    assert row[0] == row[3] and len(states) == 6 and states[row].dtype == np.float16
    words = json.dumps(sorted(set(texts)))
    made_of = f"{sd.config.text} {sd.dtype} {sd.tokenizer.backend_tokenizer.to_str()} {words} 2"
    name = digest(sd.params["text"], made_of)  # older runs have caches of this name, which still serve
    assert (tmp_path / f"states-{name}" / "00000.npy").is_file()
    monkeypatch.setattr(cache, "text_states", None)
    np.testing.assert_array_equal(cached_states(sd, texts[::-1], tmp_path)[0][np.arange(6)], states[np.arange(6)])
    with pytest.raises(TypeError):
        cached_states(sd, [*texts, "new"], tmp_path)
    smaller = train_bpe(captions(), 560, tmp_path / "bpe")
    with pytest.raises(TypeError):  # other ids for the same words
        cached_states(replace(sd, tokenizer=smaller), texts, tmp_path)


def test_rows_are_mapped_and_not_read(tmp_path):
    piece = np.arange(2 * 16, dtype=np.float16).reshape(2, 4, 4)
    fill = lambda start, stop: ((piece + first, {}) for first in range(start, stop, 2))
    rows = cached_rows(tmp_path / "x", 12, (4, 4), fill, "rows")
    assert all(isinstance(file, np.memmap) for file in rows.files) and len(rows.files) == 3
    assert rows[np.array([5, 11])][:, 0, 0].tolist() == [4 + 16, 10 + 16]


def test_processes_share_the_files(tmp_path, monkeypatch):
    """Each makes its share; what is not its own it waits for."""
    made = {0: [], 1: []}

    def fill(process):
        def pieces(start, stop):
            made[process].append(start)
            yield np.full((stop - start, 1), start, np.float16), {}

        return pieces

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    def sleep(_):  # meanwhile the other process works
        monkeypatch.setattr(jax, "process_index", lambda: 0)
        cached_rows(tmp_path, 12, (1,), fill(0), "rows")
        monkeypatch.setattr(jax, "process_index", lambda: 1)

    monkeypatch.setattr(cache.time, "sleep", sleep)
    rows = cached_rows(tmp_path, 12, (1,), fill(1), "rows")
    assert made == {0: [0, 8], 1: [4]} and rows[np.arange(12)][:, 0].tolist() == [0] * 4 + [4] * 4 + [8] * 4


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(start, stop):
        yield np.zeros((2, 1), np.float16), {}
        raise OSError(28, "No space left on device")

    with pytest.raises(SdjaxError, match=r"x/00000.npy: cannot be written \(No space left on device\)"):
        cached_rows(tmp_path / "x", 12, (1,), full, "rows")
    assert not list((tmp_path / "x").iterdir())


def test_too_many_open_files_are_not_a_damaged_cache(tmp_path, monkeypatch):
    zeros = lambda start, stop: [(np.zeros((stop - start, 1), np.float16), {})]
    rows = lambda: cached_rows(tmp_path, 4, (1,), zeros, "rows")
    rows()

    def load(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(SdjaxError, match=r"00000\.npy: Too many open files; `ulimit -n`"):
        rows()


def test_digest_tells_values_apart():
    params = {"a": np.arange(4, dtype=np.float32), "b": np.float32(1)}
    names = [digest(params), digest(params, "x"), digest(params | {"b": np.float32(2)}), digest({"a": params["a"]})]
    assert len(set(names)) == 4 and digest(params) == digest(dict(params)) and len(names[0]) == 16
    assert digest({"a": jax.numpy.ones(3, jax.numpy.bfloat16)})


def test_captions_that_are_cut_are_counted_each_time(sd, tmp_path, caplog):
    texts = ["a red apple", "a " * 40, "b " * 11 + "c", "d " * 10, "a " * 40]
    for _ in range(2):  # computed, then read from the disk
        caplog.clear()
        cached_states(sd, texts, tmp_path)
        (line,) = caplog.messages
        assert "captions: 2 of 4 different ones are cut: the text tower takes 10 tokens, the longest one has 40" in line
    caplog.clear()
    cached_states(sd, texts[:1], tmp_path)
    assert not caplog.messages
