"""README and the guide: short, with links that lead somewhere, and paths that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "sample" / "guide").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert len(PAGES) > 6


def test_the_two_commands():
    """The first bash block sets up and draws, the second sets up and tests; .ci/run evaluates the second."""
    blocks = [text for kind, text in FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8")) if kind == "bash"]
    assert blocks == [
        "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/python sample/generate.py "
        '"a 3d render of a red apple on a yellow background" --guidance-scale 4\n',
        'python3 -m venv .venv && .venv/bin/pip install -q -e ".[dev]" && '
        ".venv/bin/python -m pytest -n 2 --dist worksteal\n",
    ]


@per_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", prose(page))
    assert not [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).is_file()]


def test_every_page_is_linked():
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", prose(PAGES[0]))}
    assert set(PAGES[1:]) <= linked


@per_page
def test_paths_are_there(page):
    """Paths of files of this repository, also those in commands; names in angle brackets or capitals are not paths."""
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"\b(?:sdjax|sample|train|tests)/[\w/.-]*\w\.(?:pyi?|md|ipynb|png)\b", text))
    assert not [path for path in paths if not (ROOT / path).is_file()]
    modules = re.findall(r"python -m (tests[\w.]+)", text)
    assert not [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()]


def test_readme_has_every_room():
    rooms = {path.parent.name for path in (ROOT / "sdjax").glob("*/__init__.py")}
    tree = next(text for _, text in FENCED.findall(PAGES[0].read_text(encoding="utf-8")) if "sdjax/ " in text)
    named = set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))
    assert rooms <= named
    assert all((ROOT / "sdjax" / name).is_dir() for name in named)
    assert rooms <= set(re.findall(r"`(\w+)/`", (ROOT / "sample" / "guide" / "house.md").read_text(encoding="utf-8")))


def test_house_names_files_that_are_there():
    """Each row of the table says a room, and then files in it."""
    table = (ROOT / "sample" / "guide" / "house.md").read_text(encoding="utf-8")
    for room, text in re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", table, re.MULTILINE):
        folder = ROOT / room if room in ("sample", "train", "tests") else ROOT / "sdjax" / room
        names = re.findall(r"`(\w+\.py)`", text)
        assert not [name for name in names if not (folder / name).is_file()], room


@per_page
def test_python_blocks_use_public_names(page):
    import sdjax

    for kind, text in FENCED.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            compile(text, str(page), "exec")
            assert set(re.findall(r"\bsdjax\.(\w+)", text)) <= set(sdjax.__all__)


def test_it_can_fail():
    """The patterns above find what they look for."""
    assert "sdjax/tables.py" in re.findall(r"\bsdjax/[\w/.-]*\w\.py\b", "at the top of `sdjax/tables.py`.")
    assert re.findall(r"\]\(([^)]+)\)", "![a](b/c.png) and [d](e.md#f)") == ["b/c.png", "e.md#f"]
    assert FENCED.findall("```bash\na\n```\n```\nb\n```\n") == [("bash", "a\n"), ("", "b\n")]
