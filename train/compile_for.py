"""Compiles the training step for a TPU, which is not needed for that: python train/compile_for.py --topology v5e:8x8"""

from sdjax.commands.command_line import run
from sdjax.commands.compile_for import Options, main

if __name__ == "__main__":
    run(main, Options)
