"""Pictures as PIL images and as arrays: conversions, sheets, and PNG files that hold the settings they were made with.

    images = pixels_to_pil(sdjax.decode(sd, latents))
    contact_sheet(images, columns=4)

This file only lists the public names. The code is in sdjax/image/, sdjax/commands/grid.py and sdjax/tasks/.
"""

from sdjax.commands.grid import grid_sheet, read_axes
from sdjax.image.metadata import read_parameters
from sdjax.image.pixels import pil_to_pixels, pixels_to_pil
from sdjax.image.png import save_png
from sdjax.image.sheets import contact_sheet, labelled_sheet
from sdjax.tasks.attention_maps import overlay
from sdjax.tasks.parameters import describe, understand

__all__ = [
    "contact_sheet",
    "describe",
    "grid_sheet",
    "labelled_sheet",
    "overlay",
    "pil_to_pixels",
    "pixels_to_pil",
    "read_axes",
    "read_parameters",
    "save_png",
    "understand",
]
