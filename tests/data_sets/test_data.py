"""Image folders: what is refused and by which line, what pictures become, which picture comes when."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.data.picture import load_square
from sdjax.data.source import open_data
from sdjax.errors import SdjaxError
from tests.data_sets.batching import batches

EMOJI300 = Path(__file__).parents[1] / "data" / "emoji300"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    return folder


def write(folder, *lines):
    (folder / "metadata.jsonl").write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return folder


def line(**fields):
    return json.dumps({"file_name": "a.png", "text": "a"} | fields)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        "3",
        "null",
        '"file_name text"',
        "{}",
        '{"file_name": "a.png"}',
        line(text=None),
        line(text=["a"]),
        line(file_name=3),
        line(file_name="b.png"),
        line(file_name=""),
        line(file_name="a\0.png"),
        line(file_name="a" * 5000),
        line(file_name="a.png/b"),
        line(text="\ud800"),
        line() + "}",
        "[" * 100_000,
        '{"file_name": "a.png", "text": ' + "9" * 5000 + "}",
        b"\xff",
        b'{"file_name": "a.png", "text": "\xe9"}',
        b"\0{",
    ],
)
def test_a_broken_line_is_named_by_its_number(folder, broken):
    write(folder, line(), "", line(text="x\u2028y"), broken, line())
    with pytest.raises(SdjaxError, match=r"metadata\.jsonl line 4: ") as caught:
        open_data(folder, 4)
    assert len(str(caught.value)) < 6000


def test_good_lines_are_read(folder):
    source = open_data(write(folder, line(), "  ", line(text="é\u2028\x85 b", more=[1]) + "\r", ""), 4)
    assert len(source) == 2 and source.texts == ("a", "é\u2028\x85 b") and source[1]["index"] == 1
    assert source[1]["pixels"].shape == (4, 4, 3) and source[1]["pixels"].dtype == np.uint8
    assert len(open_data(EMOJI300, 64)) == 300


junk = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda s: s.encode("utf-8", "surrogatepass")),
    st.fixed_dictionaries(
        {},
        optional={
            "file_name": st.one_of(st.just("a.png"), st.text(max_size=8), st.none(), st.integers()),
            "text": st.one_of(st.text(max_size=8), st.none(), st.lists(st.integers(), max_size=2)),
        },
    ).map(lambda record: json.dumps(record).encode()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(junk, max_size=4))
@example([b"\xef\xbb\xbf" + line().encode()])
def test_arbitrary_lines_are_read_or_refused(folder, lines):
    write(folder, *lines)
    try:
        assert set(open_data(folder, 4).files) == {"a.png"}
    except SdjaxError as error:
        assert "metadata.jsonl" in str(error)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(SdjaxError, match=r"no metadata\.jsonl, \.tar shards or \.txt captions there"):
        open_data(tmp_path, 4)
    with pytest.raises(SdjaxError, match="no pictures listed"):
        open_data(write(tmp_path, "", " "), 4)


@pytest.mark.parametrize("content", [b"", b"no picture", (EMOJI300 / "00000.webp").read_bytes()[:200]])
def test_an_unreadable_picture_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(SdjaxError, match=r"bad\.png: not a readable picture"):
        load_square(tmp_path / "bad.png", 4)
    source = open_data(write(tmp_path, line(file_name="bad.png")), 4)
    with pytest.raises(SdjaxError, match=r"bad\.png: not a readable picture"):  # through grain's threads too
        next(batches(source, 2, seed=0))


def indices(start, count, seed=0):
    return [batch.tolist() for batch in islice(batches(range(7), 3, seed, start), count)]


def test_batch_n_is_the_same_from_wherever_one_starts():
    whole = indices(0, 9)
    for start in (1, 4, 8):
        assert indices(start, 9 - start) == whole[start:]
    assert indices(0, 9, seed=1) != whole


def test_every_picture_comes_once_an_epoch():
    drawn = np.ravel(indices(0, 7))
    epochs = drawn.reshape(3, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3, "epochs are in one order"


def test_batches_of_pictures_keep_pixels_and_captions_together():
    source = open_data(EMOJI300, 8)
    collate = lambda items: [(item["index"], item["text"], item["pixels"]) for item in items]
    first, again = (next(batches(source, 4, seed=3, start=2, collate=collate)) for _ in range(2))
    for (i, text, pixels), (j, _, same) in zip(first, again, strict=True):
        assert i == j and text == source.texts[i] and (pixels == same).all() and (pixels == source[i]["pixels"]).all()
