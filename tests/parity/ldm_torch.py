"""The networks of CompVis/latent-diffusion in plain torch, written from their published layout: names and arithmetic.

Every state_dict has the published names. `mistake` injects a fault: "heads", "order", "padding" (see MISTAKES of
make_ldm_references.py).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def attend(q, k, v, heads: int, seen=None):
    """Returns the attention of q [B, N, C] to k and v [B, M, C], over heads of equal width.

    seen: bool [B, M], the keys that count; None: all.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def conv(fan_in: int, fan_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, stride, padding=size // 2)


def norm(width: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps)


# --- UNet ---


def timestep_features(t, width: int):
    """Returns cosines, then sines, of t; the angles are float32 numbers, as published."""
    half = width // 2
    frequencies = torch.exp(-np.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = (t.float()[:, None] * frequencies).double()
    return torch.cat([angles.cos(), angles.sin()], -1)


class ResBlock(nn.Module):
    """Norm, SiLU, [resize], conv, time, norm, SiLU, conv; and the shortcut. resize: "up", "down" or None."""

    def __init__(self, fan_in, fan_out, time, film=False, resize=None):
        super().__init__()
        self.film, self.resize = film, resize
        self.in_layers = nn.Sequential(norm(fan_in), nn.SiLU(), conv(fan_in, fan_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, fan_out * (1 + film)))
        self.out_layers = nn.Sequential(norm(fan_out), nn.SiLU(), nn.Identity(), conv(fan_out, fan_out))
        self.skip_connection = nn.Identity() if fan_in == fan_out else conv(fan_in, fan_out, 1)

    def resized(self, x):
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resize == "down" else x

    def forward(self, x, emb):
        h = self.in_layers[2](self.resized(self.in_layers[:2](x)))
        shift = self.emb_layers(emb)[..., None, None]
        if self.film:
            scale, shift = shift.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + shift)
        return self.skip_connection(self.resized(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention of pixels. qkv's channels are heads, then q k v, then width; "order" takes q k v first."""

    def __init__(self, width, heads, mistake=None):
        super().__init__()
        self.heads, self.mistake = heads, mistake
        self.norm = norm(width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x):
        qkv = self.qkv(self.norm(x).flatten(2))
        if self.mistake == "order":
            parts = qkv.chunk(3, 1)
        else:
            parts = (p.flatten(1, 2) for p in qkv.unflatten(1, (self.heads, 3, -1)).unbind(2))
        h = attend(*(p.transpose(1, 2) for p in parts), self.heads)
        return x + self.proj_out(h.transpose(1, 2)).unflatten(2, x.shape[2:])


class CrossAttention(nn.Module):
    """Attention with an output layer. `width` is inside; without `bias` on q, k, v."""

    def __init__(self, query, context, width, heads, listed=True):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(query, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        out = nn.Linear(width, query)
        self.to_out = nn.Sequential(out) if listed else out

    def forward(self, x, context=None, seen=None):
        context = x if context is None else context
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads, seen))


class GEGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A layer four times as wide, then back: gated (GEGLU), or Linear and GELU."""

    def __init__(self, width, gated):
        super().__init__()
        first = GEGLU(width, 4 * width) if gated else nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(first, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1 = CrossAttention(width, width, width, heads)
        self.ff = FeedForward(width, gated=True)
        self.attn2 = CrossAttention(width, context, width, heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width, context, heads, depth):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.proj_in, self.proj_out = conv(width, width, 1), conv(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, context, heads) for _ in range(depth))

    def forward(self, x, context):
        h = tokens(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = conv(width, width, stride=2)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Sequence(nn.Sequential):
    """A Sequential that gives each layer what it reads: the time, the context, or nothing else."""

    def forward(self, x, emb, context):
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            else:
                x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class UNet(nn.Module):
    """UNetModel of a configuration's params."""

    def __init__(self, params: dict, mistake=None):
        super().__init__()
        self.width = width = params["model_channels"]
        time, factors, film = 4 * width, params["attention_resolutions"], params.get("use_scale_shift_norm", False)
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))

        def attention(channels):
            each = params.get("num_head_channels")
            heads = channels // each if each else params["num_heads"]
            if mistake == "heads":
                heads = heads // 2 if heads > 1 else 2
            if params.get("use_spatial_transformer"):
                return SpatialTransformer(channels, params["context_dim"], heads, params["transformer_depth"])
            return AttentionBlock(channels, heads, mistake)

        def block(fan_in, fan_out, factor):
            layers = [ResBlock(fan_in, fan_out, time, film)]
            return [*layers, attention(fan_out)] if factor in factors else layers

        def resize(channels, kind):
            if params.get("resblock_updown"):
                return ResBlock(channels, channels, time, film, kind)
            return Upsample(channels) if kind == "up" else Downsample(channels)

        multipliers, blocks = params["channel_mult"], params["num_res_blocks"]
        last, now, kept = len(multipliers) - 1, width, [width]
        self.input_blocks = nn.ModuleList([Sequence(conv(params["in_channels"], width))])
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.input_blocks.append(Sequence(*block(now, multiplier * width, 2**level)))
                now = multiplier * width
                kept.append(now)
            if level < last:
                self.input_blocks.append(Sequence(resize(now, "down")))
                kept.append(now)
        self.middle_block = Sequence(ResBlock(now, now, time, film), attention(now), ResBlock(now, now, time, film))
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for index in range(blocks + 1):
                layers = block(now + kept.pop(), multipliers[level] * width, 2**level)
                now = multipliers[level] * width
                if level and index == blocks:
                    layers.append(resize(now, "up"))
                self.output_blocks.append(Sequence(*layers))
        self.out = nn.Sequential(norm(now), nn.SiLU(), conv(now, params["out_channels"]))

    def forward(self, x, t, context=None):
        emb = self.time_embed(timestep_features(t, self.width).to(x.dtype))
        kept = []
        for module in self.input_blocks:
            x = module(x, emb, context)
            kept.append(x)
        x = self.middle_block(x, emb, context)
        for module in self.output_blocks:
            x = module(torch.cat([x, kept.pop()], 1), emb, context)
        return self.out(x)


# --- the condition ---


class ClassEmbedder(nn.Module):
    def __init__(self, embed_dim, n_classes=1000, key="class"):
        super().__init__()
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, classes):
        return self.embedding(classes)[:, None]


class Positions(nn.Module):
    def __init__(self, length, width):
        super().__init__()
        self.emb = nn.Embedding(length, width)


class Transformer(nn.Module):
    """An encoder whose attention has 8 heads of 64, whatever the width; to_logits is in the files and not used."""

    def __init__(self, width, depth, vocabulary, length):
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(vocabulary, width), Positions(length, width)
        layers = []
        for _ in range(depth):
            layers.append([nn.LayerNorm(width), CrossAttention(width, width, 512, 8, listed=False)])
            layers.append([nn.LayerNorm(width), FeedForward(width, gated=False)])
        self.attn_layers = nn.Module()
        self.attn_layers.layers = nn.ModuleList(nn.ModuleList(layer) for layer in layers)
        self.norm, self.to_logits = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, ids, seen=None):
        x = self.token_emb(ids) + self.pos_emb.emb.weight[: ids.shape[1]]
        for normed, layer in self.attn_layers.layers:
            more = {"seen": seen} if isinstance(layer, CrossAttention) else {}
            x = x + layer(normed(x), **more)
        return self.norm(x)


class BERTEmbedder(nn.Module):
    """Reads ids, of text too. Every token attends to the padding, id 0 of text; "padding" masks it."""

    def __init__(self, n_embed, n_layer, vocab_size=30522, max_seq_len=77, use_tokenizer=True, mistake=None):
        super().__init__()
        self.masks = use_tokenizer and mistake == "padding"
        self.transformer = Transformer(n_embed, n_layer, vocab_size, max_seq_len)

    def forward(self, ids):
        return self.transformer(ids, ids != 0 if self.masks else None)


class SpatialRescaler(nn.Module):
    def __init__(self, n_stages, in_channels, out_channels):
        super().__init__()
        self.stages, self.labels = n_stages, in_channels
        self.channel_mapper = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, ids):
        weight = self.channel_mapper.weight
        x = F.one_hot(ids, self.labels).permute(0, 3, 1, 2).to(weight.dtype)
        for _ in range(self.stages):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(x)


CONDITIONS = {kind.__name__: kind for kind in (ClassEmbedder, BERTEmbedder, SpatialRescaler, nn.Identity)}
