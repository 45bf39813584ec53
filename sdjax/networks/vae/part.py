"""The VAE as a Part."""

from functools import partial

from sdjax.networks.part import Part, example
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.fields import read_vae, write_vae
from sdjax.networks.vae.names import vae_rows
from sdjax.networks.vae.network import VAE

OWN = (
    "encoder.",
    "decoder.",
    "quant_conv.",
    "post_quant_conv.",
    "quantize.",
)  # beside them files have losses and EMA copies

KL_VAE = Part(
    VAEConfig,
    VAE,
    lambda config: (example(1, config.factor, config.factor, 3),),
    vae_rows,
    read_vae,
    write_vae,
    OWN,
    OWN,
)

#: The same in SDXL's folders, which say whether float16 overflows.
KL_VAE_XL = KL_VAE._replace(read=partial(read_vae, upcasts=True), write=partial(write_vae, upcasts=True))
