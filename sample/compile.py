"""Writes a generation program to a file: python sample/compile.py --out FILE. The same as `sdjax compile`."""

from sdjax.commands.command_line import run
from sdjax.commands.compile import Options, main

if __name__ == "__main__":
    run(main, Options)
