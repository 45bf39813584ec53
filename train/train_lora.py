"""Trains a LoRA: python train/train_lora.py --data DIR ... The same as `sdjax train lora`."""

from sdjax.commands.command_line import run
from sdjax.commands.train_lora import Options, main

if __name__ == "__main__":
    run(main, Options)
