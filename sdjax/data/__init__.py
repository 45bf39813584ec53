"""Training data: folders, .tar shards and Hugging Face data sets as one kind of source, with random access.

    picture.py   a file's bytes -> an RGB picture of a given shape, or the reason why not
    tars.py      the index of img2dataset's shards
    listing.py   what a data set holds, before any picture is read
    bad.py       what is set aside, and when that is too much
    buckets.py   shapes for pictures of all aspect ratios
    source.py    pictures and captions by row; a bad one's stand-in
    order.py     which rows the batch of a step has

The batch of step n is a function of (source, seed, n) alone, so that the data's state is the step number.
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
