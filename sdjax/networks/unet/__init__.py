"""The denoising UNet."""
