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
