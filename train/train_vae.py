"""Trains the VAE: python train/train_vae.py --data DIR ... The same as `sdjax train vae`."""

from sdjax.commands.command_line import run
from sdjax.commands.train_vae import Options, main

if __name__ == "__main__":
    run(main, Options)
