"""The one exception of this package."""


class SdjaxError(ValueError):
    """A refusal: the message is one line (or one list) naming the file, key or argument and what would be right."""
