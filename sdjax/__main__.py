"""python -m sdjax: the same as the command `sdjax`."""

from sdjax.commands.main import main

if __name__ == "__main__":
    main()
