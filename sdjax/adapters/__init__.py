"""What changes a model, sd -> sd: textual inversion."""
