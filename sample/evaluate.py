"""Measures how well a model draws the emoji: python sample/evaluate.py --data DIR. The same as `sdjax evaluate`."""

import sys
from pathlib import Path

from sdjax.commands.command_line import run
from sdjax.commands.evaluate import Options, main

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "train"))  # for prepare_emoji
    run(main, Options)
