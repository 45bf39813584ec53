"""A folder of pictures with captions in .txt files beside them."""

import pytest
from PIL import Image

from sdjax.data.listing import list_data
from sdjax.errors import SdjaxError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "c.webp"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("\ufeffa  käse\n on bread".encode())
    (tmp_path / "b.txt").write_text("a cat")
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


def test_pictures_and_captions(folder):
    found = list_data(folder)
    assert list(found.files) == ["a.JPG", "b.png", "c.webp"]
    assert list(found.texts[:2]) == ["a käse on bread", "a cat"]
    assert found.known == {2: "no c.txt beside it, which would hold its caption"}
    assert Image.open(found.open(0)).size == (8, 8)
    assert list_data(folder, captions=False).known == {}


def test_a_change_is_seen(folder):
    before = list_data(folder).digest
    (folder / "b.txt").write_text("a dog")
    assert list_data(folder).digest != before


def test_broken_captions_are_bad_rows(folder):
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "c.txt").write_text("")
    found = list_data(folder)
    assert found.known == {1: "b.txt cannot be read (not UTF-8)"} and found.texts[2] == ""


def test_what_a_right_one_looks_like(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for data, there in (
        (tmp_path, "no metadata.jsonl, .tar shards or .txt captions"),
        (tmp_path / "x", "no such folder"),
    ):
        with pytest.raises(SdjaxError) as error:
            list_data(data)
        said = str(error.value)
        assert there in said and '"file_name"' in said and "picture.txt beside each picture.png" in said


def test_metadata_goes_first(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "another"}\n')
    assert list(list_data(folder).texts) == ["another"]
