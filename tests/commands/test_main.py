"""The command `sdjax`: its list of commands, what it refuses, and that the scripts are the same commands."""

import ast
import subprocess
import sys
import time

import pytest

from sdjax.commands import main as command
from tests.scripts import ROOT

LAUNCHERS = [
    *("sample/generate.py", "sample/compile.py", "sample/evaluate.py", "sample/benchmark.py", "train/benchmark.py"),
    *("train/compile_for.py", "train/train_diffusion.py", "train/train_vae.py", "train/train_clip.py"),
]


def call(*arguments, cwd=None):
    found = subprocess.run(
        [sys.executable, "-m", "sdjax", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    return found.returncode, found.stdout, found.stderr


def test_help_lists_every_command_without_jax():
    code = """
import sys
from sdjax.commands.main import main
try:
    main(["--help"])
finally:
    assert "jax" not in sys.modules
"""
    start = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0 and time.perf_counter() - start < 2, "0.1 s on an idle machine"
    assert all(f"  {name} " in found.stdout for name in command.COMMANDS)
    assert call()[1] == call("-h")[1] == found.stdout
    assert "train vae" in call("train", "--help")[1] and "generate" not in call("train", "--help")[1]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["genrate", "a cat"], "sdjax genrate: no such command; did you mean generate?"),
        (["train", "vea"], "sdjax train vea: no such command; did you mean train vae?"),
        (["train"], "sdjax train: no such command; one of train diffusion, train vae, train clip"),
        (["--steps", "4"], "sdjax --steps: no such command; one of generate, batch"),
        (["batch"], "batch: a file with a prompt a line is needed"),
        (["batch", "--steps", "4"], "batch: a file with a prompt a line is needed"),
        (["generate", "a cat", "--stepps", "4"], "--stepps"),
        (["compile"], "--out"),
        (["batch", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_refusals_are_one_line(words, expected, tmp_path):
    status, out, error = call(*words, cwd=tmp_path)
    assert status == 2 and not out and error.startswith("error: ") and error.count("\n") == 1
    assert expected in error


def test_a_command_s_help_is_its_own(tmp_path):
    for name in ("generate", "batch", "train clip"):
        status, out, _ = call(*name.split(), "--help", cwd=tmp_path)
        assert status == 0 and f"usage: sdjax {name}" in " ".join(out.split())


def test_batch_is_generate_with_a_file_of_prompts(monkeypatch):
    seen = []
    monkeypatch.setattr("sdjax.commands.command_line.run", lambda *given: seen.append(given))
    command.main(["batch", "prompts.txt", "--steps", "4"])
    command.main(["generate", "--prompts-file", "prompts.txt", "--steps", "4"])
    assert seen[0][:4] == seen[1][:4] and seen[0][4] == "sdjax batch"


def test_evaluate_without_a_checkout(monkeypatch, tmp_path):
    from sdjax.commands import evaluate
    from sdjax.errors import SdjaxError

    monkeypatch.setattr("sdjax.__file__", str(tmp_path / "site-packages" / "sdjax" / "__init__.py"))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.endswith("train")])
    monkeypatch.delitem(sys.modules, "prepare_emoji", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SdjaxError, match=r"evaluate: no train/prepare_emoji\.py here; start it in a checkout"):
        evaluate.main(evaluate.Options(tmp_path))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_scripts_are_launchers(name):
    lines = (ROOT / name).read_text().splitlines()
    tree = ast.parse("\n".join(lines))
    code = [line for line in lines[tree.body[0].end_lineno :] if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 20 and ast.get_docstring(tree)


def test_the_installed_command_is_this_one():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"sdjax": "sdjax.commands.main:main"}
