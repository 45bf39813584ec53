"""A folder a network: its config, its modules, and the names of its tensors in files."""
