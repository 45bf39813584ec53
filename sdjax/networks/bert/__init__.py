"""The BERT-like transformer of latent diffusion: it reads layouts as tokens."""
