"""The mathematics of diffusion. It knows no network, no file and no device."""
