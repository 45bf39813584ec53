"""train/caption.py with the bundled CLIP on the example pictures."""

import json
import os
import shutil

import pytest

from tests.scripts import ROOT

EXAMPLES = ROOT / "tests" / "data" / "emoji300"


@pytest.fixture
def pictures(place):
    """The first 48 example pictures without their captions, one of them in a folder, and what is no picture."""
    lines = [json.loads(line) for line in (EXAMPLES / "metadata.jsonl").read_text().splitlines()]
    folder = place / "bare"
    (folder / "deep").mkdir(parents=True)
    truth = {}
    for i, line in enumerate(lines[:48]):
        name = f"deep/{line['file_name']}" if i == 0 else line["file_name"]
        shutil.copy(EXAMPLES / line["file_name"], folder / name)
        truth[name] = line["text"]
    (folder / "broken.png").write_bytes(b"no picture")
    shutil.copy(EXAMPLES / lines[0]["file_name"], os.fsencode(folder) + b"/caf\xe9.webp")
    (place / "phrases.txt").write_text("\n".join(line["text"] for line in lines))
    yield folder, truth
    shutil.rmtree(folder)


def test_most_pictures_get_their_own_caption_of_300(pictures, script, capsys):
    folder, truth = pictures
    command = ("train/caption.py", "--data", "bare", "--phrases", "phrases.txt", "--batch-size", 20)
    assert script(*command) == 0
    said = capsys.readouterr().err
    assert "broken.png: not a readable picture" in said and "caf\\udce9.webp': its name is not UTF-8" in said
    content = (folder / "metadata.jsonl").read_bytes()
    found = {line["file_name"]: line for line in map(json.loads, content.splitlines())}
    assert found.keys() == truth.keys() and list(found) == sorted(found)
    assert sum(found[name]["text"] == text for name, text in truth.items()) >= 0.8 * len(truth)
    assert all(-1 <= line["score"] <= 1 for line in found.values())

    assert script(*command) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert script(*command[:-1], 7, "--overwrite") == 0
    lines = map(json.loads, (folder / "metadata.jsonl").read_bytes().splitlines())
    again = {line["file_name"]: line["text"] for line in lines}
    assert again == {name: line["text"] for name, line in found.items()}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--data": "nowhere"}, "--data nowhere: no such folder"),
        ({"--data": "empty"}, "--data empty: no pictures there"),
        ({"--phrases": "nothing.txt"}, "nothing.txt: cannot be read"),
        ({"--batch-size": 0}, "--batch-size 0: at least 1"),
        ({"--clip": "empty"}, "config.json"),
        ({"--model": "nowhere"}, "nowhere"),
    ],
)
def test_refusals(pictures, place, script, capsys, change, message):
    (place / "empty").mkdir(exist_ok=True)
    options = {"--data": "bare", "--phrases": "phrases.txt"} | change
    assert script("train/caption.py", *[word for pair in options.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (pictures[0] / "metadata.jsonl").exists()
