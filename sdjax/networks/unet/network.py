"""The UNet: predicts eps, v or x0 from noisy latents, a timestep and text states.

The layout is that of CompVis `openaimodel.py`: a path down, a middle, and a path up that concatenates [h, skip] before
every ResBlock. Shapes at 512 px: x [B, 64, 64, 4]; levels of 64, 32, 16 and 8 latent pixels a side.
"""

from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax.networks.unet.config import UNetConfig
from sdjax.nn.layers import Dense, GroupNorm, ResBlock, conv3x3, dense, timestep_embedding
from sdjax.nn.transformer import AttentionBlock, SpatialTransformer, block_name
from sdjax.types import Array, Params

OWN_DTYPE = ("time_in", "time_out", "guidance_in", "label", "label_in", "label_out")  # always computed in float32

KeysValues = dict[str, tuple[Array, Array]]  # name of a transformer -> its cross-attention's keys and values, [B, L, C]
TimeShifts = dict[str, Array]  # name of a ResBlock -> what the time adds in it, [B, C]


def keys_values(params: Params, context: Array | None, dtype: jnp.dtype) -> KeysValues:
    """Returns what every cross-attention projects the context to. One call serves all steps of a walk.

    params: the UNet's. context: text states [B, L, D]; a UNet without cross-attention takes None.
    """
    project = lambda kernel: jnp.dot(context.astype(dtype), kernel.astype(dtype))
    blocks = {f"{name}/{block}": part[block] for name, part in params.items() for block in part if "block" in block}
    crosses = {name: block["cross"] for name, block in blocks.items()}
    crosses |= {f"{name}/text": block["text"] for name, block in blocks.items() if "text" in block}
    return {name: (project(cross["k"]["kernel"]), project(cross["v"]["kernel"])) for name, cross in crosses.items()}


def time_shifts(
    params: Params,
    t: Array,
    config: UNetConfig,
    dtype: jnp.dtype,
    vector: Array | None = None,
    guidance: Array | None = None,
) -> TimeShifts:
    """Returns what the time, and the vector and the guidance scale if the UNet takes them, add in every ResBlock.

    params: the UNet's. t: timesteps [B]. vector, guidance: see `UNet`. One call serves all steps of a walk that has no
    vector.
    """
    time = timestep_embedding(t, config.channels[0])
    if config.guidance:
        time += dense(params["guidance_in"], guidance.astype(jnp.float32), jnp.float32)
    time = dense(params["time_in"], time, jnp.float32)
    time = dense(params["time_out"], nn.silu(time), jnp.float32)
    if config.labels:
        time += params["label"]["embedding"].astype(jnp.float32)[label_of(vector)]
    if config.vector:
        hidden = nn.silu(dense(params["label_in"], vector.astype(jnp.float32), jnp.float32))
        time += dense(params["label_out"], hidden, jnp.float32)
    time = nn.silu(time).astype(dtype)
    return {name: dense(part["time"], time, dtype) for name, part in params.items() if "time" in part}


def guidance_features(scale: Any, width: int, xp: ModuleType = np) -> Any:
    """Returns guidance scales w [...] as features [..., width] of 1000 (w - 1): sines, then cosines, of frequencies 1
    to 1e-4, the last one included (diffusers' get_guidance_scale_embedding). xp: numpy, in float64, or jax.numpy.
    """
    half = width // 2
    kind = np.float64 if xp is np else xp.float32
    angles = (
        1000.0 * (xp.asarray(scale, kind)[..., None] - 1.0) * np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    )
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], -1).astype(xp.float32)


def label_of(vector: Array) -> Array:
    """Returns the rows of the label table that a Cond's vector [B, 1] names, int32 [B]."""
    return vector[:, 0].astype(jnp.int32)


def computed_in(params: Params, dtype: jnp.dtype) -> Params:
    """Returns the UNet's parameters in the dtype that its layers would cast them to at each call.

    The parameters of the norms and of the time embedding (time_in, time_out) keep their dtype.
    """
    own = lambda path: any("norm" in key.key or key.key in OWN_DTYPE for key in path)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if own(path) else leaf.astype(dtype), params)


class UNet(nn.Module):
    """The denoising UNet. It computes in `dtype`, and the time embedding in float32."""

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # keep only each block's input for the backward pass, and compute the rest again

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array | TimeShifts,
        context: Array | KeysValues | None = None,
        vector: Array | None = None,
        guidance: Array | None = None,
    ) -> Array:
        """x [B, h, w, in_channels] -> float32 [B, h, w, out_channels].

        t: timesteps [B], or the `time_shifts` of them and of the vector.
        context: text states [B, L, context_dim], or their `keys_values`; None if the config has no cross-attention.
        vector: [B, config.vector] floats, or [B, 1] rows of the label table; None if the config has neither.
        guidance: [B, config.guidance], the scale as `guidance_features`; None if the config takes none, or t holds it.
        """
        config, dtype = self.config, self.dtype
        levels = range(len(config.channels))
        blocks = ResBlock, SpatialTransformer, AttentionBlock
        Res, Transformer, Attend = map(nn.remat, blocks) if self.remat else blocks

        def res(name, h, level, resize=None):
            channels, shape = config.channels[level], (config.groups, 1e-5, dtype, True, config.scale_shift, resize)
            return Res(channels, *shape, name=name)(h, time, shifts.get(name))

        def between(name, h, level, size=None):
            """To the level below, or with the size of the skip that h meets next, (rows, columns), to the one above."""
            if config.updown:
                return res(name, h, level, "up" if size else "down")
            how = {"enlarge": True} if size else {"stride": 2}
            convolved = conv3x3(config.channels[level], name, dtype, **how).of(h.shape[-1])
            return convolved(h, size) if size else convolved(h)

        def attend(name, h, level, depth):
            heads = config.heads[level]
            if not config.cross:
                return Attend(heads, config.groups, dtype, name=name)(h)
            of = lambda key: context[key] if isinstance(context, dict) else context
            first = lambda key: None if config.attends_itself[level] else of(f"{key}/text")
            keys = [f"{name}/{block_name(i)}" for i in range(depth)]
            given = [(of(key), first(key)) for key in keys]
            return Transformer(heads, config.groups, config.upcast_attention, dtype, depth, name=name)(h, given)

        time, shifts = (None, t) if isinstance(t, dict) else (t, {})
        if time is not None:
            width = 4 * config.channels[0]
            time = timestep_embedding(time, config.channels[0])
            if config.guidance:
                time += Dense(config.channels[0], jnp.float32, use_bias=False, name="guidance_in")(guidance)
            time = Dense(width, jnp.float32, name="time_in")(time)
            time = Dense(width, jnp.float32, name="time_out")(nn.silu(time))
            if config.labels:
                time += nn.Embed(config.labels, width, name="label")(label_of(vector))
            if config.vector:
                hidden = nn.silu(Dense(width, jnp.float32, name="label_in")(vector))
                time += Dense(width, jnp.float32, name="label_out")(hidden)
        context = context if context is None or isinstance(context, dict) else context.astype(dtype)

        h = conv3x3(config.channels[0], "conv_in", dtype)(x.astype(dtype))
        skips = [h]
        for level in levels:
            for i in range(config.blocks):
                h = res(f"down_{level}_res_{i}", h, level)
                if config.attention[level]:
                    h = attend(f"down_{level}_attn_{i}", h, level, config.depths[level])
                skips.append(h)
            if level != levels[-1]:
                h = between(f"down_{level}_downsample", h, level)
                skips.append(h)

        h = res("mid_res_0", h, -1)
        if config.middle:
            h = attend("mid_attn", h, -1, config.depths[-1])
            h = res("mid_res_1", h, -1)

        for level in reversed(levels):
            for i in range(config.blocks + 1):
                h = res(f"up_{level}_res_{i}", jnp.concatenate([h, skips.pop()], axis=-1), level)
                if config.attention[level]:
                    h = attend(f"up_{level}_attn_{i}", h, level, config.depths_up[level][i])
            if level != 0:
                h = between(f"up_{level}_upsample", h, level, skips[-1].shape[1:3])

        h = nn.silu(GroupNorm(config.groups, 1e-5, name="norm_out")(h))
        h = conv3x3(config.out_channels, "conv_out", dtype, init=nn.initializers.zeros_init())(h)
        return h.astype(jnp.float32)
