"""Folders, shards and data sets with bad pictures among them: all of those are named, no good one is lost."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdjax.data.source import open_data
from sdjax.errors import SdjaxError
from tests.data_sets.batching import batches

EMOJI300 = Path(__file__).parents[1] / "data" / "emoji300"


def stored(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def square(i):
    """A picture whose colour is its number."""
    return stored(Image.new("RGB", (2, 2), (i // 65536, i // 256 % 256, i % 256)))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
BOMB = square(0).replace(b"\0\0\0\x02\0\0\0\x02", b"\0\0\xff\xff\0\0\xff\xff", 1)
KINDS = ("zero bytes", "no picture", "cut off PNG", "cut off JPEG", "bomb", "missing", "a folder", "caption")


def spoil(folder, i, kind):
    """Makes picture i of the folder bad and returns its line for metadata.jsonl."""
    path, line = folder / f"{i}.png", json.dumps({"file_name": f"{i}.png", "text": f"n\xf6 {i}"}, ensure_ascii=False)
    content = {
        "zero bytes": b"",
        "no picture": b"<html>",
        "cut off PNG": stored(NOISE)[:-100],
        "cut off JPEG": stored(NOISE, "JPEG")[:-100],
        "bomb": BOMB,
    }.get(kind)
    if content is not None:
        path.write_bytes(content)
    elif kind != "caption":
        path.unlink()
    if kind == "a folder":
        path.mkdir()
    return line.encode("latin-1" if kind == "caption" else "utf-8")


def make_folder(folder, count, bad):
    """`count` pictures, `bad` of them of the kinds in turn; the numbers of the bad ones."""
    numbers = sorted(np.random.default_rng(1).choice(count, bad, replace=False).tolist())
    lines = []
    for i in range(count):
        (folder / f"{i}.png").write_bytes(square(i))
        kind = KINDS[numbers.index(i) % len(KINDS)] if i in numbers else None
        lines.append(spoil(folder, i, kind) if kind else json.dumps({"file_name": f"{i}.png", "text": str(i)}).encode())
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    return numbers


def named(run):
    records = [json.loads(line) for line in (run / "bad_data.jsonl").read_text().splitlines()]
    assert all(record["reason"] for record in records)
    return sorted(int(Path(record["path"]).stem) for record in records)


def drawn(source, steps, batch_size, seed=0, start=0):
    """The items of some batches, one list each."""
    return list(islice(batches(source, batch_size, seed, start, list), steps))


def check_epoch(folder, run, count, bad, batch_size):
    numbers = make_folder(folder, count, bad)
    source = open_data(folder, 2, 0.05, run)
    items = [item for batch in drawn(source, -(-count // batch_size), batch_size) for item in batch][:count]
    order = np.ravel(list(islice(batches(range(count), batch_size, 0), -(-count // batch_size))))[:count]
    good = [i for i in range(count) if i not in numbers]
    for row, item in zip(order, items, strict=True):
        expected = next(i % count for i in range(row, row + count) if i % count not in numbers)
        assert item["index"] == expected and item["text"] == str(expected)
        assert item["pixels"][0, 0].tolist() == [expected // 65536, expected // 256 % 256, expected % 256]
    assert {item["index"] for item in items} == set(good)
    assert named(run) == numbers and len(source.bad) == bad


def test_eight_kinds_of_bad_pictures_are_named_and_no_good_one_is_lost(tmp_path):
    (tmp_path / "data").mkdir()
    check_epoch(tmp_path / "data", tmp_path / "run", 400, 16, 50)


@pytest.mark.slow
def test_37_of_10000(tmp_path):
    (tmp_path / "data").mkdir()
    check_epoch(tmp_path / "data", tmp_path / "run", 10_000, 37, 100)


def test_batches_with_stand_ins_are_the_same_after_a_restart_and_in_every_process(tmp_path):
    make_folder(tmp_path, 60, 6)
    pick = lambda batch: [(item["index"], item["text"]) for item in batch]
    whole = [pick(batch) for batch in drawn(open_data(tmp_path, 2, 0.2), 10, 8)]
    assert [pick(batch) for batch in drawn(open_data(tmp_path, 2, 0.2), 6, 8, start=4)] == whole[4:]
    for hosts in (2, 4):
        parts = [slice(k * 8 // hosts, (k + 1) * 8 // hosts) for k in range(hosts)]
        streams = [batches(open_data(tmp_path, 2, 0.2), 8, 0, 0, list, part) for part in parts]
        assert [[one for stream in streams for one in pick(next(stream))] for _ in range(10)] == whole


def test_too_many_are_refused_by_share(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    numbers = make_folder(data, 40, 8)
    run = tmp_path / "run"
    items = [item for batch in drawn(open_data(data, 2, 0.2, run), 5, 8) for item in batch]  # 8 of 40 are 20 %
    assert len(items) == 40 and named(run) == numbers
    for _ in range(2):  # a restart finds them again: what an earlier start wrote down does not excuse them
        with pytest.raises(SdjaxError, match=r"png: .* 8 of 40 pictures, more than `max_bad` 0\.19; they are"):
            drawn(open_data(data, 2, 0.19, run), 5, 8)
    assert named(run) == numbers
    for number in numbers:
        path = data / f"{number}.png"
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(square(number))
    text = (data / "metadata.jsonl").read_bytes().decode("utf-8", "replace")
    (data / "metadata.jsonl").write_text(text)
    assert len(drawn(open_data(data, 2, 0.0, run), 5, 8)) == 5, "what was repaired still counts"


def test_the_refusal_comes_to_every_thread(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{i}.png", "text": ""}) for i in range(20))
    )
    source = open_data(tmp_path, 2, 0.5)

    def view(i):
        with pytest.raises(SdjaxError, match=r"11 of 20 pictures, more than `max_bad` 0\.5") as caught:
            source.view(i)
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(view, range(20)))) == 1
    with pytest.raises(SdjaxError, match="none of the 20 pictures can be read"):
        open_data(tmp_path, 2, 1.0).view(3)


def test_the_log_survives_a_line_that_was_cut_off(tmp_path):
    (tmp_path / "data").mkdir()
    numbers = make_folder(tmp_path / "data", 20, 4)
    (tmp_path / "bad_data.jsonl").write_text('{"path": "other/7.png", "reason": "x"}\n{"path": "da')
    drawn(open_data(tmp_path / "data", 2, 0.5, tmp_path), 4, 5)
    lines = (tmp_path / "bad_data.jsonl").read_text().splitlines()[2:]
    assert sorted(int(Path(json.loads(line)["path"]).stem) for line in lines) == numbers


def test_each_process_has_a_file_of_its_own(tmp_path):
    (tmp_path / "data").mkdir()
    make_folder(tmp_path / "data", 8, 1)
    drawn(open_data(tmp_path / "data", 2, 0.5, tmp_path, process=3), 1, 8)
    assert [path.name for path in tmp_path.glob("bad*")] == ["bad_data-3.jsonl"]


def test_a_fifo_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": ""}')
    with pytest.raises(SdjaxError, match="line 1: no such picture"):  # opening it would wait for ever
        open_data(tmp_path, 2)


# views: crops, flips, buckets


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """60 pictures of many aspect ratios, column x of which has the colour (x, 0, 0)."""
    folder, rng, lines = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0), []
    for i in range(60):
        height, width = rng.integers(16, 120, 2)
        x = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3)) * np.uint8([1, 0, 0])
        Image.fromarray(x).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": str(i)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_random_crops_and_flips_hang_on_seed_epoch_and_row(shapes):
    source = open_data(shapes, 16, crop="random", flip=True, seed=5)
    again, other = (open_data(shapes, 16, crop="random", flip=True, seed=seed) for seed in (5, 6))
    view = lambda source, row, epoch: source.view(row, epoch)["pixels"]
    wide = [i for i in range(60) if (size := Image.open(shapes / f"{i}.png").size)[0] > 1.5 * size[1]]
    for row in wide[:5]:
        np.testing.assert_array_equal(view(source, row, 3), view(again, row, 3))
        assert len({view(source, row, epoch).tobytes() for epoch in range(6)}) > 3
        assert any((view(source, row, epoch) != view(other, row, epoch)).any() for epoch in range(3))
    ends = [view(source, row, epoch)[0, [0, -1], 0] for row in wide for epoch in range(8)]
    flipped = np.mean([left > right for left, right in ends])
    assert 0.35 < flipped < 0.65
    plain = open_data(shapes, 16, seed=5)
    np.testing.assert_array_equal(view(plain, 0, 0), view(plain, 0, 7))
    assert plain.digest == open_data(shapes, 16, seed=6).digest != source.digest != other.digest


def test_buckets(shapes, tmp_path):
    source = open_data(shapes, 32, run=tmp_path, buckets=8)
    assert sorted(np.concatenate(source.groups).tolist()) == list(range(60)) and len(source.shapes) > 3
    for group, rows in enumerate(source.groups):
        height, width = source.shapes[group]
        assert height % 8 == width % 8 == 0 and height * width <= 32 * 32
        for row in rows:
            assert source.view(int(row), 0, group)["pixels"].shape == (height, width, 3)
            size = Image.open(shapes / f"{row}.png").size
            ratio = np.log(size[1] / size[0])
            best = min(abs(ratio - np.log(h / w)) for h, w in source.shapes)
            assert abs(ratio - np.log(height / width)) <= best + 1e-9
    (kept,) = (tmp_path / "cache").glob("sizes-*.npy")
    for damaged in (None, b"", kept.read_bytes()[:-8]):
        if damaged is not None:
            kept.write_bytes(damaged)
        again = open_data(shapes, 32, run=tmp_path, buckets=8)
        assert [rows.tolist() for rows in again.groups] == [rows.tolist() for rows in source.groups]


def test_batches_of_buckets_have_one_shape_and_bad_pictures_stand_ins(shapes, tmp_path):
    for path in shapes.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "7.png").write_bytes(b"")
    (tmp_path / "8.png").write_bytes((tmp_path / "8.png").read_bytes()[:-40])  # its head can be read
    source = open_data(tmp_path, 32, 0.1, tmp_path / "run", buckets=8)
    seen = set()
    for batch in drawn(source, 60 // 4 + len(source.groups), 4):
        assert len({item["pixels"].shape for item in batch}) == 1
        seen |= {item["index"] for item in batch}
    assert seen == set(range(60)) - {7, 8} and named(tmp_path / "run") == [7, 8]


def test_bucket_arguments(shapes):
    with pytest.raises(SdjaxError, match="multiple of 24"):
        open_data(shapes, 32, buckets=24)
    with pytest.raises(SdjaxError, match="crop left: expected center or random"):
        open_data(shapes, 32, crop="left")


def test_what_is_no_data_is_refused(tmp_path):
    for data, there in (
        (tmp_path, r"no metadata\.jsonl"),
        (tmp_path / "nowhere", "no such"),
        (tmp_path / "x.tar", "no"),
    ):
        with pytest.raises(SdjaxError, match=rf"{there}.*expected a folder of pictures with a metadata\.jsonl"):
            open_data(data, 2)
    for data in ([], 3, {"train": []}):
        with pytest.raises(SdjaxError, match=r"should be a path or a datasets\.Dataset"):
            open_data(data, 2)


# Hugging Face's data sets


class FakeDataset:
    """As much of datasets.Dataset as is used."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        row = {name: values[key] for name, values in self.columns.items()}
        if isinstance(row.get("image"), Exception):
            raise row["image"]
        return row


def test_a_dataset_object(tmp_path):
    (tmp_path / "3.png").write_bytes(square(3))
    pictures = [
        Image.new("RGBA", (2, 2), (0, 0, 0, 255)),
        square(1),
        {"bytes": square(2), "path": None},
        {"bytes": None, "path": str(tmp_path / "3.png")},
        str(tmp_path / "3.png"),
        None,
        ValueError("broken"),
        square(7),
    ]
    data = FakeDataset(label=list(range(8)), image=pictures, caption=[*map(str, range(7)), None])
    source = open_data(data, 2, 0.5, tmp_path)
    assert [source[i]["pixels"][0, 0, 2] for i in range(5)] == [0, 1, 2, 3, 3] and source[3]["text"] == "3"
    assert [source[i]["index"] for i in (5, 6, 7)] == [0, 0, 0]
    reasons = [json.loads(line) for line in (tmp_path / "bad_data.jsonl").read_text().splitlines()]
    assert {r["path"] for r in reasons} == {"row 5", "row 6", "row 7"} and "caption is NoneType" in reasons[0]["reason"]
    assert len(drawn(source, 3, 4)) == 3
    with pytest.raises(SdjaxError, match="columns label, pixels, should have image or"):
        open_data(FakeDataset(label=[1], pixels=[2]), 2)
    with pytest.raises(SdjaxError, match="has no rows"):
        open_data(FakeDataset(image=[], text=[]), 2)


def test_emoji300_is_whole():
    source = open_data(EMOJI300, 16)
    assert len({source[i]["pixels"].tobytes() for i in range(0, 300, 25)}) == 12


BROKEN_LINES = [
    *('{"file_name": "0.png", "text": null}', '{"file_name": "0.png", "te', '{"file_name": "0.png"}', "{}", "null"),
    *('{"file_name": 3, "text": "a"}', '{"text": "a"}', "[]", '"0.png"', "3", "[" * 5000, "\x00"),
]


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: line[:30])
def test_a_broken_line_is_a_bad_row(line, tmp_path):
    """It counts against max_bad, is named by its number, and no good picture is lost."""
    (tmp_path / "data").mkdir()
    make_folder(tmp_path / "data", 20, 0)
    table = tmp_path / "data" / "metadata.jsonl"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:7], line, "", *lines[7:]]) + "\n")
    source = open_data(tmp_path / "data", 2, max_bad=0.05, run=tmp_path / "run")
    assert len(source) == 21 and list(source.known) == [7] and "expected {" in source.known[7]
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "bad_data.jsonl").read_text().splitlines()]
    assert row["path"] == f"{table} line 8"
    assert source[7]["index"] == 8, "a stand-in"
    with pytest.raises(SdjaxError, match=r"metadata\.jsonl line 8: expected \{.*bad with it: 1 of 21 pictures"):
        open_data(tmp_path / "data", 2, max_bad=0.01, run=tmp_path / "run2")
    with pytest.raises(
        SdjaxError, match=r"metadata\.jsonl line 8: expected \{\"file_name\": \"\.\.\.\", \"text\": \"\.\.\.\"\}$"
    ):
        open_data(tmp_path / "data", 2)
