"""Text to image: python sample/generate.py "a red apple". The same as `sdjax generate`."""

from sdjax.commands.command_line import run
from sdjax.commands.generate import Options, defaults, main

if __name__ == "__main__":
    run(main, Options, defaults)
