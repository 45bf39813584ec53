"""The commands: their options, command-line parsing, progress bars, and the work that each does."""
