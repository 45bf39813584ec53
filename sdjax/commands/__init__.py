"""What one types: the options of each command, parsing, progress, and the work of each command."""
