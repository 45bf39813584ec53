"""The UNet: predicts eps, v or x0 from noisy latents, a timestep and text states.

The layout is that of CompVis `openaimodel.py`: a path down, a middle, and a path up that concatenates [h, skip] before
every ResBlock. Shapes at 512 px: x [B, 64, 64, 4]; levels of 64, 32, 16 and 8 latent pixels a side.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.networks.unet.config import UNetConfig
from sdjax.nn.layers import Dense, GroupNorm, ResBlock, conv3x3, dense, timestep_embedding
from sdjax.nn.transformer import SpatialTransformer
from sdjax.types import Array, Params

KeysValues = dict[str, tuple[Array, Array]]  # name of a transformer -> its cross-attention's keys and values, [B, L, C]
TimeShifts = dict[str, Array]  # name of a ResBlock -> what the time adds in it, [B, C]


def keys_values(params: Params, context: Array, dtype: jnp.dtype) -> KeysValues:
    """Returns the keys and values that every cross-attention projects a context [B, L, D] to.

    params: the UNet's parameters. Use it to compute these once for all steps of a walk.
    """
    project = lambda kernel: jnp.dot(context.astype(dtype), kernel.astype(dtype))
    crosses = {name: part["block"]["cross"] for name, part in params.items() if "block" in part}
    return {name: (project(cross["k"]["kernel"]), project(cross["v"]["kernel"])) for name, cross in crosses.items()}


def time_shifts(params: Params, t: Array, config: UNetConfig, dtype: jnp.dtype) -> TimeShifts:
    """Returns what the timesteps t [B] add in every ResBlock.

    params: the UNet's parameters. Use it to compute this for all steps of a walk at once.
    """
    time = dense(params["time_in"], timestep_embedding(t, config.channels[0]), jnp.float32)
    time = nn.silu(dense(params["time_out"], nn.silu(time), jnp.float32)).astype(dtype)
    return {name: dense(part["time"], time, dtype) for name, part in params.items() if "time" in part}


def computed_in(params: Params, dtype: jnp.dtype) -> Params:
    """Returns the UNet's parameters in the dtype that its layers would cast them to at each call.

    The parameters of the norms and of the time embedding (time_in, time_out) keep their dtype.
    """
    own = lambda path: any("norm" in key.key or key.key in ("time_in", "time_out") for key in path)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if own(path) else leaf.astype(dtype), params)


class UNet(nn.Module):
    """The denoising UNet. It computes in `dtype`, and the time embedding in float32."""

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # keep only each block's input for the backward pass, and compute the rest again

    @nn.compact
    def __call__(self, x: Array, t: Array | TimeShifts, context: Array | KeysValues) -> Array:
        """x [B, h, w, in_channels] -> float32 [B, h, w, out_channels].

        t: timesteps [B], or their `time_shifts`.
        context: text states [B, L, context_dim], or their `keys_values`.
        """
        config, dtype = self.config, self.dtype
        levels = range(len(config.channels))
        blocks = ResBlock, SpatialTransformer
        Res, Transformer = map(nn.remat, blocks) if self.remat else blocks

        def res(name, h, level):
            block = Res(config.channels[level], config.groups, 1e-5, dtype, zero_init=True, name=name)
            return block(h, time, shifts.get(name))

        def attend(name, h, level):
            block = Transformer(config.heads[level], config.groups, config.upcast_attention, dtype, name=name)
            return block(h, context[name] if isinstance(context, dict) else context)

        time, shifts = (None, t) if isinstance(t, dict) else (t, {})
        if time is not None:
            width = 4 * config.channels[0]
            time = timestep_embedding(time, config.channels[0])
            time = Dense(width, jnp.float32, name="time_in")(time)
            time = Dense(width, jnp.float32, name="time_out")(nn.silu(time))
        context = context if isinstance(context, dict) else context.astype(dtype)

        h = conv3x3(config.channels[0], "conv_in", dtype)(x.astype(dtype))
        skips = [h]
        for level in levels:
            for i in range(config.blocks):
                h = res(f"down_{level}_res_{i}", h, level)
                if config.attention[level]:
                    h = attend(f"down_{level}_attn_{i}", h, level)
                skips.append(h)
            if level != levels[-1]:
                h = conv3x3(config.channels[level], f"down_{level}_downsample", dtype, stride=2)(h)
                skips.append(h)

        h = res("mid_res_0", h, -1)
        h = attend("mid_attn", h, -1)
        h = res("mid_res_1", h, -1)

        for level in reversed(levels):
            for i in range(config.blocks + 1):
                h = res(f"up_{level}_res_{i}", jnp.concatenate([h, skips.pop()], axis=-1), level)
                if config.attention[level]:
                    h = attend(f"up_{level}_attn_{i}", h, level)
            if level != 0:
                h = conv3x3(config.channels[level], f"up_{level}_upsample", dtype, enlarge=True)(h)

        h = nn.silu(GroupNorm(config.groups, 1e-5, name="norm_out")(h))
        h = conv3x3(config.out_channels, "conv_out", dtype, init=nn.initializers.zeros_init())(h)
        return h.astype(jnp.float32)
