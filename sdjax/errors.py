"""The one exception of this package, and how one of JAX' is told."""


class SdjaxError(ValueError):
    """A refusal: the message is one line (or one list) naming the file, key or argument and what would be right."""


def out_of_memory(error: Exception) -> bool:
    """Of JAX' JaxRuntimeError: is it that a device has too little?"""
    return "RESOURCE_EXHAUSTED" in str(error)
