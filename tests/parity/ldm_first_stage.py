"""The first stages of CompVis/latent-diffusion in plain torch: VQModelInterface and AutoencoderKL, names as published.

`mistake` "codes" decodes without quantisation.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.ldm_torch import Upsample, attend, conv, norm, tokens


class ResnetBlock(nn.Module):
    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.norm1, self.conv1 = norm(fan_in, 1e-6), conv(fan_in, fan_out)
        self.norm2, self.conv2 = norm(fan_out, 1e-6), conv(fan_out, fan_out)
        if fan_in != fan_out:
            self.nin_shortcut = conv(fan_in, fan_out, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention of pixels with one head."""

    def __init__(self, width):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (conv(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        h = attend(*(tokens(layer(h)) for layer in (self.q, self.k, self.v)), 1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """A conv of stride 2 that pads on the right and below alone."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The blocks of one level, each before its attention, if any."""

    def __init__(self, fan_in, fan_out, blocks, attends):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(fan_out if i else fan_in, fan_out) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(fan_out) for _ in range(blocks if attends else 0))

    def forward(self, x):
        for index, block in enumerate(self.block):
            x = block(x)
            x = self.attn[index](x) if len(self.attn) else x
        return x


class Middle(nn.Module):
    def __init__(self, width, attends):
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttnBlock(width) if attends else nn.Identity()
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Half(nn.Module):
    """What encoder and decoder share: the widths of the levels, which of them attend, and the end."""

    def __init__(self, dd):
        super().__init__()
        self.widths = [dd["ch"] * multiplier for multiplier in dd["ch_mult"]]
        self.attends = [dd["resolution"] // 2**level in dd["attn_resolutions"] for level in range(len(self.widths))]
        self.mid = Middle(self.widths[-1], dd.get("attn_type") != "none")

    def end(self, x):
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(Half):
    def __init__(self, dd):
        super().__init__(dd)
        self.conv_in = conv(dd["in_channels"], dd["ch"])
        before = [dd["ch"], *self.widths]
        self.down = nn.ModuleList(
            Level(before[i], width, dd["num_res_blocks"], self.attends[i]) for i, width in enumerate(self.widths)
        )
        for level, width in zip(self.down[:-1], self.widths, strict=False):
            level.downsample = Downsample(width)
        self.norm_out = norm(self.widths[-1], 1e-6)
        self.conv_out = conv(self.widths[-1], dd["z_channels"] * (1 + dd["double_z"]))

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        return self.end(self.mid(x))


class Decoder(Half):
    def __init__(self, dd):
        super().__init__(dd)
        self.conv_in = conv(dd["z_channels"], self.widths[-1])
        before = [*self.widths[1:], self.widths[-1]]
        self.up = nn.ModuleList(
            Level(before[i], width, dd["num_res_blocks"] + 1, self.attends[i]) for i, width in enumerate(self.widths)
        )
        for level, width in zip(self.up[1:], self.widths[1:], strict=True):
            level.upsample = Upsample(width)
        self.norm_out, self.conv_out = norm(self.widths[0], 1e-6), conv(self.widths[0], dd["out_ch"])

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.end(x)


class Codebook(nn.Module):
    def __init__(self, codes, width):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)

    def distances(self, z):
        """Returns the distance of each latent [B, C, H, W] to each code: [B, H W, codes]."""
        return torch.cdist(tokens(z), self.embedding.weight[None], compute_mode="donot_use_mm_for_euclid_dist")

    def forward(self, z):
        codes = self.embedding(self.distances(z).argmin(-1))
        return codes.transpose(1, 2).unflatten(2, z.shape[2:])

    def margin(self, z) -> float:
        """Returns by how much the second nearest code is farther than the nearest, at the latent where it is least."""
        first, second = self.distances(z).topk(2, largest=False).values.unbind(-1)
        return (second - first).min().item()


class FirstStage(nn.Module):
    """The first stage of a configuration's params; `n_embed` tells a VQ from a KL."""

    def __init__(self, params: dict, mistake=None):
        super().__init__()
        dd, width, self.mistake = params["ddconfig"], params["embed_dim"], mistake
        both = 1 + dd["double_z"]
        self.encoder, self.decoder = Encoder(dd), Decoder(dd)
        self.quant_conv = nn.Conv2d(both * dd["z_channels"], both * width, 1)
        self.post_quant_conv = nn.Conv2d(width, dd["z_channels"], 1)
        self.quantize = Codebook(params["n_embed"], width) if "n_embed" in params else None

    def encode(self, pixels) -> dict:
        """Returns mean and logvar (KL), or the latents before quantisation as the mean (VQ)."""
        moments = self.quant_conv(self.encoder(pixels))
        return {"mean": moments} if self.quantize else dict(zip(("mean", "logvar"), moments.chunk(2, 1), strict=True))

    def decode(self, latents):
        """Returns the pixels of latents that are already divided by their scale."""
        if self.quantize and self.mistake != "codes":
            latents = self.quantize(latents)
        return self.decoder(self.post_quant_conv(latents))
