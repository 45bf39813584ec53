"""The image server: python sample/serve.py --port 7860. The same as `sdjax serve`."""

from sdjax.commands.command_line import run
from sdjax.commands.serve import Options, main

if __name__ == "__main__":
    run(main, Options)
