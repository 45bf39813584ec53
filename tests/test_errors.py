"""A library names arguments, a command names flags."""

import ast
from pathlib import Path

import pytest

import sdjax
from sdjax.errors import SdjaxError, flags_of, prefixed, with_flags

ROOT = Path(sdjax.__file__).parent


def test_no_error_of_the_library_names_a_flag():
    wrong = []
    for path in ROOT.rglob("*.py"):
        if "commands" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("SdjaxError", "prefixed"):
                texts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
                wrong += [f"{path.name}: {text}" for text in texts if isinstance(text, str) and "--" in text]
    assert not wrong


def test_a_command_puts_flags_in_place_of_arguments():
    names = ("batch_size", "remat", "out")
    assert with_flags("batch_size 3: take `remat`", names) == "--batch-size 3: take --remat"
    for path in ("out/00000.png", "out.txt", "out-1"):
        assert with_flags(f"{path}: a picture of another run", names) == f"{path}: a picture of another run"
    assert with_flags("a file: out of `disk`", names) == "a file: out of `disk`"
    with pytest.raises(SdjaxError, match=r"^--out x: full$"), flags_of(names), prefixed("out x: "):
        raise SdjaxError("full")
