"""The command `sdjax`: its list of commands, what it refuses, and that the scripts are the same commands."""

import ast
import os
import subprocess
import sys
import time

import pytest

import sdjax
from sdjax.commands import main as command
from tests.scripts import ROOT

pytestmark = pytest.mark.usefixtures("quick_compile")
LAUNCHERS = [
    *("sample/generate.py", "sample/compile.py", "sample/evaluate.py", "sample/benchmark.py", "sample/serve.py"),
    "train/benchmark.py",
    *("train/compile_for.py", "train/train_diffusion.py", "train/train_vae.py", "train/train_clip.py"),
]


def call(*arguments, cwd=None):
    found = subprocess.run(
        [sys.executable, "-m", "sdjax", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    return found.returncode, found.stdout, found.stderr


@pytest.fixture
def sdjax_command(place, monkeypatch):
    """sdjax_command("train", "vae"): runs it in `place` and returns its exit status."""

    def run(*words):
        monkeypatch.chdir(place)
        monkeypatch.setenv("SDJAX_CACHE", "off")  # JAX's settings are the whole process'
        try:
            command.main([str(word) for word in words])
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return run


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
        (["--steps", "4"], "--steps: an option comes after a command"),
        (["train", "--steps", "4"], "--steps: an option comes after a command"),
        (["xyz"], "sdjax xyz: no such command; one of generate, batch, convert"),
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


def test_batch_is_generate_with_a_file_of_prompts(sdjax_command, script, place, capfd):
    """And what the script does: the same bytes."""
    (place / "prompts.txt").write_text("a red apple\na cat\n")
    options = "--model", "model", "--steps", 2, "--seed", 3
    assert sdjax_command("batch", "prompts.txt", *options, "--out", "a") == 0
    assert sdjax_command("generate", "--prompts-file", "prompts.txt", *options, "--out", "b") == 0
    assert script("sample/generate.py", "--prompts-file", "prompts.txt", *options, "--out", "c") == 0
    assert capfd.readouterr().out.splitlines() == [f"{name}: 2 pictures drawn" for name in "abc"]
    for name in ("00000-seed3.png", "00001-seed4.png", "manifest.jsonl"):
        first, *others = [(place / folder / name).read_bytes() for folder in "abc"]
        assert others == [first, first]


def test_a_command_repeats_a_picture(sdjax_command, place):
    options = "--model", "model", "--steps", 2, "--sampler", "euler", "--seed", 5
    assert sdjax_command("generate", "a cat", *options, "--out", "first") == 0
    first = place / "first" / "00000-seed5.png"
    assert sdjax_command("generate", "--from", first, "--out", "again") == 0
    assert (place / "again" / first.name).read_bytes() == first.read_bytes()


def test_training_leaves_an_export(sdjax_command, place):
    words = "--model model --data pictures --out vae --steps 1 --batch-size 8 --sample-every 0 --freeze-encoder"
    assert sdjax_command("train", "vae", *words.split()) == 0
    assert sdjax.load(place / "vae" / "export").config.size == 8


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


@pytest.mark.parametrize("words", ["--help", "generate --help", "generate prompt --out /proc/nowhere/x.png"])
def test_a_reader_that_leaves_is_no_fault(words):
    reading, writing = os.pipe()
    os.close(reading)  # as after `| head -3`, however little was read
    call = subprocess.run([sys.executable, "-m", "sdjax", *words.split()], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert b"Traceback" not in call.stderr and b"Broken pipe" not in call.stderr
    assert call.returncode == (141 if "--help" in words else 2)
