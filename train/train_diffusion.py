"""Trains the UNet: python train/train_diffusion.py --data DIR ... The same as `sdjax train diffusion`."""

from sdjax.commands.command_line import run
from sdjax.commands.train_diffusion import Options, main

if __name__ == "__main__":
    run(main, Options)
