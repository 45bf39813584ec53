"""Building blocks of the networks: Flax Linen modules in NHWC, with every padding and epsilon written out."""
