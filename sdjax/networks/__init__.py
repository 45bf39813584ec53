"""The networks, one folder each: its config, its modules, and the names of its tensors in files."""
