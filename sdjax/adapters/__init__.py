"""Functions that return a changed model, sd -> sd: textual inversion."""
