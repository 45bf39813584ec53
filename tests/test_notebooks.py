"""The notebooks run, and show what they have kept: pictures where they kept pictures, text where they kept text."""

import ast
import importlib
import json
import runpy
from inspect import ismodule
from pathlib import Path

import nbformat
import pytest

import sdjax

FOLDER = Path(__file__).parent.parent / "sample" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
pytestmark = pytest.mark.usefixtures("quick_compile")


def kinds(notebook):
    """What each code cell shows, by kind."""
    return [
        [sorted(output["data"]) if "data" in output else output["name"] for output in cell["outputs"]]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_what_it_has_kept(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    found = runpy.run_path(str(FOLDER / "execute.py"))["execute"](kept)
    assert kinds(found) == kinds(kept)
    assert sum("image/png" in shown for cell in kinds(kept) for shown in cell) >= 3
    counts = [cell["execution_count"] for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "kept as run, from top to bottom"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_only_what_is_public(path):
    """A notebook is read as an example: it has `import sdjax`, and names that sdjax, sdjax.sampling and so on list."""
    modules = {"sdjax", *(f"sdjax.{name}" for name in sdjax.__all__ if ismodule(getattr(sdjax, name)))}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names if alias.name.split(".")[0] == "sdjax"} <= modules
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "sdjax":
            assert node.module in modules
            assert {alias.name for alias in node.names} <= set(importlib.import_module(node.module).__all__)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sdjax":
            assert node.attr in sdjax.__all__


def test_format_and_size():
    for path in NOTEBOOKS:
        nbformat.validate(nbformat.read(path, as_version=4))
    assert len(NOTEBOOKS) == 3 and sum(path.stat().st_size for path in NOTEBOOKS) < 1.5e6


def test_outputs_are_those_of_jupyter():
    run = runpy.run_path(str(FOLDER / "execute.py"))["execute"]
    source = "from PIL import Image\nprint('one\\ntwo')\nx = Image.new('RGB', (2, 3))\ndisplay(x)\n{'a': x.size}"
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        *({"cell_type": "code", "source": text.splitlines(True)} for text in (source, "x.resize((4, 4))", "y = x", "")),
    ]
    _, first, second, third, empty = run({"cells": cells, "nbformat": 4})["cells"]
    stream, picture, value = first["outputs"]
    assert stream == {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]}
    assert picture["output_type"] == "display_data" and set(picture["data"]) == {"image/png", "text/plain"}
    assert value["data"] == {"text/plain": ["{'a': (2, 3)}"]} and value["execution_count"] == 1
    assert second["outputs"][0]["output_type"] == "execute_result" and second["execution_count"] == 2
    assert third["outputs"] == empty["outputs"] == []
