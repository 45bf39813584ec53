"""How each backend computes attention, convolutions and norms. You can read the architecture without this package."""
