import os
import stat

import pytest

from sdjax.errors import SdjaxError
from sdjax.files import written_whole


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with written_whole(path) as scratch:
        scratch.write_text("new")
        assert not path.exists() and scratch.parent == path.parent and scratch.name.startswith(".b.txt-")
    before = os.umask(0o027)
    try:
        with written_whole(path) as scratch:
            scratch.write_text("newer")
    finally:
        os.umask(before)
    assert path.read_text() == "newer" and os.listdir(path.parent) == ["b.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # the user's own rule


@pytest.mark.parametrize(
    "fault, raised, said",
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (SdjaxError("prompt: too long"), SdjaxError, "^prompt: too long$"),
        (OSError(28, "No space left on device"), SdjaxError, r"a: cannot be written \(No space left on device\)$"),
        (OSError("I/O error"), SdjaxError, r"a: cannot be written \(I/O error\)$"),
    ],
)
def test_a_block_that_fails_leaves_what_was_there(tmp_path, fault, raised, said):
    (tmp_path / "a").write_text("old")
    with pytest.raises(raised, match=said), written_whole(tmp_path / "a") as scratch:
        scratch.write_text("half")
        raise fault
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_refused_before_the_block(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "more").mkdir(parents=True)
    entered = []
    with pytest.raises(SdjaxError, match="file/a: cannot be written"), written_whole(tmp_path / "file" / "a"):
        entered.append("file")
    assert not entered
    with pytest.raises(SdjaxError, match="folder: cannot be written"), written_whole(tmp_path / "folder"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_writers_of_one_file_do_not_share_its_scratch(tmp_path):
    with (
        written_whole(tmp_path / "a") as one,
        written_whole(tmp_path / "a") as other,
        written_whole(tmp_path / "a", mark="1") as marked,
    ):
        assert len({one, other, marked}) == 3 and marked.name == ".a-1.tmp"
        one.write_text("last to end")
    assert (tmp_path / "a").read_text() == "last to end" and os.listdir(tmp_path) == ["a"]
