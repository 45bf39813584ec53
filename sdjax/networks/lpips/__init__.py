"""LPIPS, a perceptual distance."""
