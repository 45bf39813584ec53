"""img2dataset's shards: read where they lie, indexed once, bad samples and broken files named."""

import io
import json
import os
import tarfile

import pytest

from sdjax.data import tars
from sdjax.data.source import open_data
from sdjax.errors import SdjaxError
from tests.data_sets.test_source import NOISE, drawn, make_folder, named, square, stored


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def sample(i, caption="txt", suffix="png"):
    key, record = f"{i:09d}", {"url": "http://x", "status": "success", "width": 2}
    members = [(f"{key}.{suffix}", square(i))]
    members += [(f"{key}.json", json.dumps(record | ({"caption": f"c {i}"} if caption == "json" else {})).encode())]
    return members + ([(f"{key}.txt", f"c {i} \xe9\n".encode())] if caption == "txt" else [])


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "00000.tar", [member for i in range(5) for member in sample(i)])
    write_shard(folder / "00001.tar", [member for i in range(5, 8) for member in sample(i, "json")] + sample(8, None))
    (folder / "00000_stats.json").write_text("{}")
    (folder / "00000.parquet").write_bytes(b"PAR1")
    return folder


def test_shards_are_read_where_they_lie(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    source = open_data(shards, 2, run=tmp_path / "run")
    assert source.texts == [*[f"c {i} \xe9" for i in range(5)], "c 5", "c 6", "c 7", ""]
    assert source.files[5] == "00001.tar/000000005.png" and len(source) == 9
    for row in (8, 0, 4, 3):
        item = source[row]
        assert item["pixels"][1, 1].tolist() == [0, 0, row] and item["text"] == source.texts[row]
    assert open_data(shards / "00001.tar", 2).texts == source.texts[5:]
    assert {path.name for path in shards.iterdir()} == {"00000.tar", "00001.tar", "00000_stats.json", "00000.parquet"}


def test_a_shard_is_indexed_once(shards, tmp_path, monkeypatch):
    indexed, index = [], tars.index_shard
    monkeypatch.setattr(tars, "index_shard", lambda shard: indexed.append(shard.name) or index(shard))
    first = open_data(shards, 2, run=tmp_path)
    assert indexed == ["00000.tar", "00001.tar"]
    assert open_data(shards, 2, run=tmp_path).listing.files == first.files and len(indexed) == 2
    write_shard(shards / "00001.tar", sample(20) + sample(21))
    changed = open_data(shards, 2, run=tmp_path)
    assert indexed[2:] == ["00001.tar"] and changed.texts[5:] == ["c 20 \xe9", "c 21 \xe9"]
    assert changed.digest != first.digest
    for kept in (tmp_path / "cache" / "index").iterdir():
        kept.write_text(kept.read_text()[:-9])
    assert open_data(shards, 2, run=tmp_path).files == changed.files and len(indexed) == 5


def test_hosts_with_the_same_process_ids_do_not_share_scratch_files(shards, tmp_path, monkeypatch):
    """All that is written in a shared folder has a name of its own until it is whole."""
    named, move = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: named.append((new, old)) or move(old, new))
    for _ in range(2):
        open_data(shards, 8, run=tmp_path / "run", buckets=4)
        for path in (tmp_path / "run" / "cache").rglob("*.*"):
            path.unlink()
    assert len(named) == 6 and len(dict(named)) == 3 and len(set(named)) == 6


def test_a_shard_that_cannot_be_read_is_said_with_its_picture(shards, tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def seek(self, *_):
            raise OSError(5, "Input/output error")

    data = open_data(shards, 2, max_bad=0.0)
    monkeypatch.setattr("sdjax.data.listing.open_file", lambda path: Broken())
    with pytest.raises(SdjaxError, match=r"00000\.tar/\S+: its shard cannot be read \(Input/output error\)"):
        data[0]


def test_bad_samples_of_shards(tmp_path):
    members = [m for i in range(20) for m in sample(i)]
    spoilt = {"000000003.png": b"", "000000005.txt": b"\xff\xfe", "000000007.png": stored(NOISE)[:-90]}
    write_shard(tmp_path / "00000.tar", [(name, spoilt.get(name, content)) for name, content in members])
    content = write_shard(tmp_path / "00001.tar", [m for i in range(20, 30) for m in sample(i)]).read_bytes()
    place = content.index(b"000000029.png") + 512 + 30  # the download broke off within the last picture
    (tmp_path / "00001.tar").write_bytes(content[:place])
    run = tmp_path / "run"
    source = open_data(tmp_path, 2, 0.2, run)
    seen = {item["index"] for batch in drawn(source, 6, 5) for item in batch}
    assert seen == set(range(30)) - {3, 5, 7, 29}
    assert named(run) == [3, 5, 7, 29]


def test_names_that_are_there_twice_and_hidden_files(tmp_path):
    members = [m for i in range(4) for m in sample(i)]
    again, hidden = members[: len(members) // 4], [("._000000002.png", b"mac"), ("a/._000000002.txt", b"mac")]
    write_shard(tmp_path / "00000.tar", [*members, *again, *hidden])
    source = open_data(tmp_path, 2, 0.5, tmp_path / "run")
    assert len(source) == 5 and set(source.known) == {0, 4}
    assert "twice" in (tmp_path / "run" / "bad_data.jsonl").read_text()
    with pytest.raises(SdjaxError, match="size 0: "):
        open_data(tmp_path, 0)
    with pytest.raises(SdjaxError, match="max_bad nan: "):
        open_data(tmp_path, 2, float("nan"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "zero bytes"),
        (b"no tar at all" * 100, "not a whole .tar"),
        (b"\x1f\x8b" + b"x" * 2000, "not a whole .tar"),
        ("nothing", "no pictures"),
        ("middle", "not a whole .tar"),
    ],
)
def test_broken_shards_are_named(shards, content, message):
    if content == "nothing":
        write_shard(shards / "00002.tar", [("a.txt", b"a")])
    elif content == "middle":
        whole = bytearray((shards / "00000.tar").read_bytes())
        place = whole.index(b"000000002.png")
        whole[place : place + 512] = os.urandom(512)
        (shards / "00002.tar").write_bytes(whole)
    else:
        (shards / "00002.tar").write_bytes(content)
    with pytest.raises(SdjaxError, match=rf"00002\.tar: .*{message}"):
        open_data(shards, 2)


def test_the_same_batches_from_a_folder_and_from_shards(tmp_path):
    folder, shards = tmp_path / "folder", tmp_path / "shards"
    folder.mkdir()
    shards.mkdir()
    make_folder(folder, 12, 0)
    for first in (0, 6):
        write_shard(
            shards / f"{first}.tar",
            [
                member
                for i in range(first, first + 6)
                for member in [(f"{i}.png", square(i)), (f"{i}.txt", str(i).encode())]
            ],
        )
    for a, b in zip(*(drawn(open_data(data, 2), 5, 4, seed=3) for data in (folder, shards)), strict=True):
        assert [(x["index"], x["text"], x["pixels"].tolist()) for x in a] == [
            (x["index"], x["text"], x["pixels"].tolist()) for x in b
        ]


def texts(folder, members, **options):
    folder.mkdir(exist_ok=True)
    write_shard(
        folder / "0.tar",
        [(name, content.encode() if isinstance(content, str) else content) for name, content in members],
    )
    source = open_data(folder, 2, **options)
    return {name.removeprefix("0.tar/"): text for name, text in zip(source.files, source.texts, strict=True)}, source


P = square(0)
BOM = "\ufeff"


@pytest.mark.parametrize(
    "members, want",
    [
        # each its own caption, whatever else has its key
        ([("f.1.png", P), ("f.1.txt", "a"), ("f.2.png", P), ("f.2.txt", "b")], {"f.1.png": "a", "f.2.png": "b"}),
        ([("f.2.txt", "b"), ("f.1.txt", "a"), ("f.1.png", P), ("f.2.png", P)], {"f.1.png": "a", "f.2.png": "b"}),
        ([("0.png", P), ("0.json", '{"caption": "a"}'), ("0.meta.json", '{"caption": "b"}')], {"0.png": "a"}),
        ([("0.meta.json", "{}"), ("0.png", P), ("0.json", '{"caption": "a"}')], {"0.png": "a"}),
        ([("0.png", P), ("0.txt", "a"), ("0.tags.txt", "x, y")], {"0.png": "a"}),
        ([("0.png", P), ("0.tags.txt", "x, y"), ("0.txt", "a")], {"0.png": "a"}),
        ([("a/0.png", P), ("a/0.txt", "a"), ("b/0.png", P), ("b/0.txt", "b")], {"a/0.png": "a", "b/0.png": "b"}),
        # one picture and one caption under a key belong together
        ([("0.png", P), ("0.caption.txt", "a")], {"0.png": "a"}),
        ([("0.image.png", P), ("0.txt", "a")], {"0.image.png": "a"}),
        # masks and depths are no pictures
        ([("0.png", P), ("0.mask.png", P), ("0.txt", "a")], {"0.png": "a"}),
        ([("0.seg.png", P), ("0.depth.png", P), ("0.jpg", P), ("0.txt", "a")], {"0.jpg": "a"}),
        (
            [("0.1.png", P), ("0.1.mask.png", P), ("0.1.txt", "a"), ("0.2.png", P), ("0.2.txt", "b")],
            {"0.1.png": "a", "0.2.png": "b"},
        ),
        ([("0.png", P), ("0.txt", "a"), ("0.5.png", P), ("0.5.txt", "b")], {"0.png": "a", "0.5.png": "b"}),
        # byte order marks
        ([("0.png", P), ("0.txt", BOM + "a")], {"0.png": "a"}),
        ([("0.png", P), ("0.json", BOM + '{"caption": "a"}')], {"0.png": "a"}),
        ([("0.png", P), ("0.json", json.dumps({"text": BOM + "a"}))], {"0.png": "a"}),
    ],
    ids=lambda value: " ".join(name for name, _ in value) if isinstance(value, list) else "",
)
def test_a_picture_has_the_caption_of_its_own_name(members, want, tmp_path):
    assert texts(tmp_path / "data", members)[0] == want


def test_captions_that_belong_to_nobody_set_their_pictures_aside(tmp_path):
    members = [(f"{i}.png", P) for i in range(20)] + [(f"{i}.txt", f"c {i}") for i in range(18)]
    members += [("18.a.txt", "a"), ("18.b.txt", "b"), ("19.txt", "c 19")]
    found, source = texts(tmp_path / "data", members, max_bad=0.1)
    assert list(source.known) == [18] and "no caption has its name, and 2 captions" in source.known[18]
    assert found["17.png"] == "c 17" and found["18.png"] == ""
    shared = [("f.1.png", P), ("f.2.png", P), ("f.txt", "one for two")]
    with pytest.raises(
        SdjaxError, match=r"f\.1\.png: no caption has its name, and 1 captions are there for 2 pictures"
    ):
        texts(tmp_path / "shared", shared)


def test_pictures_without_captions_are_counted(tmp_path, caplog):
    texts(tmp_path / "none", [("0.png", P), ("1.png", P)])
    assert "none: 2 of 2 pictures have no caption" in caplog.text
    caplog.clear()
    texts(tmp_path / "some", [("0.png", P), ("0.txt", "a"), ("1.png", P)])
    assert "some: 1 of 2 pictures have no caption" in caplog.text
    caplog.clear()
    texts(tmp_path / "all", [("0.png", P), ("0.txt", "a")])
    assert not caplog.messages
    texts(tmp_path / "masks", [("0.png", P), ("0.txt", "a"), ("0.mask.png", P)])
    assert "0.tar: 1 images belong to other pictures, as masks do, and are left out: 0.mask.png" in caplog.text


def test_an_index_of_older_rules_is_made_anew(tmp_path, monkeypatch):
    members = [("f.1.png", P), ("f.1.txt", "a"), ("f.2.png", P), ("f.2.txt", "b")]
    monkeypatch.setattr(tars, "RULES", 1)
    texts(tmp_path / "data", members, run=tmp_path / "run")
    for path in (tmp_path / "run" / "cache" / "index").iterdir():
        path.write_text(path.read_text().replace('"a"', '"b"'))
    monkeypatch.undo()
    assert texts(tmp_path / "data", members, run=tmp_path / "run")[0] == {"f.1.png": "a", "f.2.png": "b"}
