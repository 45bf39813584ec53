"""Training data: folders, .tar shards and Hugging Face data sets as one kind of source, with random access.

    picture.py   a file's bytes -> an RGB picture of a given shape, or the reason why it cannot be used
    tars.py      the index of img2dataset's shards
    listing.py   the names and captions of a data set, before any picture is read
    bad.py       the pictures that are set aside, and the limit on how many may be
    buckets.py   shapes for pictures of all aspect ratios
    source.py    pictures and captions by row; another picture stands in for a bad one
    order.py     the rows of each step's batch

The batch of step n depends on (source, seed, n) alone, so the step number is all that a checkpoint keeps of the data.
"""

from sdjax.data.order import Chosen, Order, read_ahead
from sdjax.data.picture import load_square, to_pixels
from sdjax.data.source import Pictures, open_data

__all__ = [
    "Chosen",
    "Order",
    "Pictures",
    "load_square",
    "open_data",
    "read_ahead",
    "to_pixels",
]
