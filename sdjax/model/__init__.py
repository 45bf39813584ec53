"""A loaded model as one value, how it is loaded and saved, and the pure functions that take it."""
