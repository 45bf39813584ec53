"""The command `sdjax`: its first words name a command, and the rest are that command's options.

A command's module is imported only when it is asked for, so that the list of commands or a refusal takes no time.
"""

import importlib
import sys
from collections.abc import Sequence

from sdjax.commands.command_line import reader_may_leave, run, versions
from sdjax.errors import did_you_mean

#: words -> (module of this folder with `main`, `Options` and perhaps `defaults`; what the command does)
COMMANDS = {
    "generate": ("generate", "Draw pictures of a prompt."),
    "batch": ("generate", "Draw a picture of each line of a file; go on after a kill (generate --prompts-file FILE)."),
    "convert": ("convert", "Write a model as a folder or as a single file."),
    "compile": ("compile", "Write a generation program to a file."),
    "evaluate": ("evaluate", "Measure how well a model draws the emoji (needs a checkout)."),
    "benchmark": ("benchmark", "Time sdjax beside diffusers."),
    "serve": ("serve", "Serve pictures: a page, the web UI's API, the images API."),
    "train diffusion": ("train_diffusion", "Train the UNet."),
    "train vae": ("train_vae", "Train the VAE."),
    "train clip": ("train_clip", "Train CLIP's towers."),
    "train lora": ("train_lora", "Train a LoRA or a relative of it, with prior pictures if asked for (DreamBooth)."),
    "train embedding": ("train_embedding", "Teach a new word (textual inversion)."),
    "train controlnet": ("train_controlnet", "Train a ControlNet."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that `arguments` name; None takes sys.argv's."""
    with reader_may_leave():
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> None:
    if arguments[:1] == ["--version"]:
        return print("\n".join(versions("--verbose" in arguments)))
    words = arguments[: 2 if arguments[:1] == ["train"] else 1]
    name = " ".join(words)
    if not words or words[-1] in ("-h", "--help"):
        print(usage(name.split(" ")[0] if len(words) == 2 else ""))
        sys.exit(0)
    if name not in COMMANDS:
        refuse(name)
    module, _ = COMMANDS[name]
    rest = arguments[len(words) :]
    if name == "batch" and not (rest and rest[0] in ("-h", "--help")):
        if not rest or rest[0].startswith("-"):
            print("error: batch: a file with a prompt a line is needed: sdjax batch FILE [OPTIONS]", file=sys.stderr)
            sys.exit(2)
        rest = ["--prompts-file", *rest]
    command = importlib.import_module(f"sdjax.commands.{module}")
    run(command.main, command.Options, getattr(command, "defaults", None), rest, f"sdjax {name}")


def usage(first: str = "") -> str:
    """Returns the list of all commands, or of those that begin with the word `first`."""
    shown = {name: what for name, (_, what) in COMMANDS.items() if name.split(" ")[0] == first or not first}
    lines = [f"  {name:<{max(map(len, shown))}}  {what}" for name, what in shown.items()]
    return "\n".join(["usage: sdjax COMMAND [OPTIONS]", "", *lines, "", "sdjax COMMAND --help lists its options."])


def refuse(name: str) -> None:
    """Prints one line for words that name no command, with the nearest command, and exits with status 2."""
    if name.split(" ")[-1].startswith("-"):
        print(
            f"error: {name.split(' ')[-1]}: an option comes after a command; sdjax --help lists them", file=sys.stderr
        )
        sys.exit(2)
    begun = [command for command in COMMANDS if command.startswith(f"{name} ")]
    near = "" if begun else did_you_mean(name, COMMANDS)
    known = near or f"; one of {', '.join(begun or COMMANDS)}"
    print(f"error: sdjax {name}: no such command{known}", file=sys.stderr)
    sys.exit(2)
