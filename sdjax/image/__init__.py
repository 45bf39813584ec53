"""PIL images <-> arrays, sheets of pictures, PNG files and their text, the watermark."""
