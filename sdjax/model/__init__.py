"""One loaded model as a value, and the pure functions over it."""
