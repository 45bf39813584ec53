"""The mathematics of diffusion. This package depends on no network, no file and no device."""
