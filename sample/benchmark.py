"""Times sdjax beside diffusers: python sample/benchmark.py. The same as `sdjax benchmark`."""

from sdjax.commands.benchmark import main
from sdjax.commands.benchmark_options import Options
from sdjax.commands.command_line import run

if __name__ == "__main__":
    run(main, Options)
