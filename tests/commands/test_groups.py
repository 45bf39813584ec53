"""The command line as people type it: groups, other names of flags, near names, labels of samplers."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from sdjax.commands import command_line as cli
from sdjax.commands import convert, generate_options, train_clip, train_diffusion, train_vae
from sdjax.commands.generate_options import Options, canvas, check_options, read_sides, with_names
from sdjax.commands.groups import documented, flat, grouped, nested
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError

ALL = [generate_options.Options, convert.Options, train_diffusion.Options, train_vae.Options, train_clip.Options]


@dataclass(frozen=True)
class Base:
    data: Path
    """Where it lies."""
    scale: float | None = None
    """How much."""


@dataclass(frozen=True)
class Some(Base):
    GROUPS: ClassVar = {"size": ("height", "sides")}
    height: int = 3
    sides: tuple[int, int] | None = None
    """Two of them."""
    kind: Literal["a", "b"] = "a"
    text: str = ""


def parsed(*arguments, options=Some, default=None):
    return cli.parse(options, "It does.", default, arguments)


def help_of(capsys, options=Some):
    with pytest.raises(SystemExit) as stop:
        parsed("--help", options=options)
    assert not stop.value.code
    return capsys.readouterr().out


def test_groups(capsys):
    said = help_of(capsys)
    first, second = said.split("size options")
    assert "--data PATH" in first and "--kind {a,b}" in first and "Where it lies." in first
    assert "--height INT" in second and "--sides INT INT" in second and "(default: 3)" in second
    assert "None" not in said


@pytest.mark.parametrize("options", ALL)
def test_help_says_no_none(options, capsys):
    said = help_of(capsys, options)
    assert "(default: None)" not in said and "{None}" not in said and "default: ''" not in said
    assert all(
        f"--{field.name.strip('_').replace('_', '-')}" in said
        for field in fields(options)
        if field.name not in ("prompt", "source", "target")
    )


@pytest.mark.parametrize("options", ALL)
def test_every_group_names_fields(options):
    names = [name for group in getattr(options, "GROUPS", {}).values() for name in group]
    assert len(set(names)) == len(names) and set(names) <= {field.name for field in fields(options)}


def test_values_come_through():
    assert parsed("--data", "x") == Some(Path("x"))
    assert parsed("--data=x", "--sides", "1", "2", "--scale", "0.5", "--kind", "b") == Some(
        Path("x"), 0.5, sides=(1, 2), kind="b"
    )
    whole = Some(Path("y"), 2.0, 5)
    assert parsed("--kind", "b", default=whole) == Some(Path("y"), 2.0, 5, kind="b")
    assert parsed("--scale", "None", default=whole).scale is None
    assert flat(Some, nested(grouped(Some), whole)) == whole
    assert documented(Some) == {"data": "Where it lies.", "scale": "How much.", "sides": "Two of them."}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--heigth", "4"], "no option --heigth; did you mean --height?"),
        (["--nothing-like-it"], "no option --nothing-like-it; see --help"),
        (["--kind", "c"], "invalid choice 'c' for argument '--kind'"),
        ([], "--data"),
    ],
)
def test_refusals(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith("error: ") and message in said


@pytest.mark.parametrize("name, ours", [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_torch_s_names_of_dtypes(name, ours):
    assert parsed("a", "--dtype", name, options=Options).dtype == ours
    assert parsed("a", f"--dtype={name}", options=Options).dtype == ours
    assert parsed(name, options=Options).prompt == (name,), "a prompt is no dtype"


def test_other_names_of_flags():
    found = parsed("a cat", "--cfg-scale", "3", "-n", "4", "-o", "there", options=Options)
    assert (found.guidance_scale, found.num_images, found.out) == (3.0, 4, Path("there"))


@pytest.mark.parametrize("sampler", samplers)
def test_labels_of_samplers(sampler):
    label = samplers[sampler].label
    assert with_names(Options(sampler=label)).sampler == sampler
    assert with_names(Options(sampler=sampler)) == Options(sampler=sampler)
    if samplers[sampler].karras:
        found = with_names(Options(sampler=f"{label} Karras"))
        assert (found.sampler, found.sigmas) == (sampler, "karras")
    assert with_names(Options(sampler="no such")).sampler == "no such"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hires": 0.5}, "--hires 0.5: a number from 1 on"),
        ({"hires": 2.0, "hires_strength": 0.0}, "--hires-strength 0.0: a number above 0"),
        ({"hires": 2.0, "init_image": Path("a.png")}, "--hires: a picture of text alone, not with --init-image"),
        ({"hires_steps": 4}, "--hires-steps 4: needs --hires"),
        ({"hires_upscale": "pixels"}, "--hires-upscale pixels: needs --hires"),
        ({"outpaint": "1,2,3,4"}, "--outpaint 1,2,3,4: needs --init-image"),
        ({"outpaint": "1,2,3", "init_image": Path("a.png")}, "--outpaint 1,2,3: LEFT,TOP,RIGHT,BOTTOM expected"),
        ({"outpaint": "1,2,3,-4", "init_image": Path("a.png")}, "--outpaint 1,2,3,-4: LEFT"),
        ({"outpaint": "1,2,3,4", "init_image": Path("a.png"), "width": 64}, "--outpaint: instead of --width"),
        ({"outpaint": "1,2,3,4", "init_image": Path("a.png"), "mask": Path("m.png")}, "--outpaint: instead of --mask"),
        ({"feather": 2.0}, "--feather 2.0: needs --mask or --outpaint"),
    ],
)
def test_what_does_not_fit_together(options, message):
    with pytest.raises(SdjaxError) as error:
        check_options(Options(prompt=("a",), **options))
    assert str(error.value).startswith(message)


def test_sides():
    assert read_sides("1, 2,3,4") == [1, 2, 3, 4]

    class Picture:
        height, width = 10, 20

    assert canvas(Picture, 1, 2, 3, 4) == (16, 24)


def test_versions(capsys):
    cli.run(lambda options: None, Some, arguments=["--version"])
    assert capsys.readouterr().out.startswith("sdjax ")
    cli.run(lambda options: None, Some, arguments=["--version", "--verbose"])
    said = capsys.readouterr().out
    assert "Python 3" in said and "jax " in said and "cpu" in said and said.count("\n") == 4
