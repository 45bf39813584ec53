"""T2I-Adapters: pictures that steer a UNet, through a small network of their own (arXiv 2302.08453)."""
