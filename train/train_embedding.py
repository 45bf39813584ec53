"""Trains a new word: python train/train_embedding.py --data DIR ... The same as `sdjax train embedding`."""

from sdjax.commands.command_line import run
from sdjax.commands.train_embedding import Options, main

if __name__ == "__main__":
    run(main, Options)
