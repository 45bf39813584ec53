"""IP-Adapters: pictures as prompts, through keys and values of their own in a UNet (arXiv 2308.06721)."""
