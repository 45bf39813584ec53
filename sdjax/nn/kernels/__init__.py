"""How each backend computes attention, convolutions and norms. The architecture can be read without it."""
