"""Trains a ControlNet: python train/train_controlnet.py --data DIR ... The same as `sdjax train controlnet`."""

from sdjax.commands.command_line import run
from sdjax.commands.train_controlnet import Options, main

if __name__ == "__main__":
    run(main, Options)
