"""Trains CLIP: python train/train_clip.py --data DIR ... The same as `sdjax train clip`."""

from sdjax.commands.command_line import run
from sdjax.commands.train_clip import Options, main

if __name__ == "__main__":
    run(main, Options)
