"""The spatial rescaler: a semantic map as channels beside the latents."""
