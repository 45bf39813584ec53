"""Times the training step beside diffusers' on torch: python train/benchmark.py --model EMOJI --batch-size 16."""

from sdjax.commands.command_line import run
from sdjax.commands.train_benchmark import Options, main

if __name__ == "__main__":
    run(main, Options)
