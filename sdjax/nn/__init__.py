"""The networks: Flax Linen modules, NHWC, every padding and epsilon written out."""
