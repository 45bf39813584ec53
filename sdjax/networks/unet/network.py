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

from sdjax.networks.unet.blocks import Blocks, KeysValues, Residuals, TimeShifts, label_of
from sdjax.networks.unet.config import UNetConfig
from sdjax.nn.layers import GroupNorm, conv3x3, dense, timestep_embedding
from sdjax.types import Array, Params

OWN_DTYPE = ("time_in", "time_out", "guidance_in", "label", "label_in", "label_out")  # always computed in float32


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
        control: Residuals | None = None,
    ) -> Array:
        """x [B, h, w, in_channels] -> float32 [B, h, w, out_channels].

        t: timesteps [B], or the `time_shifts` of them and of the vector.
        context: text states [B, L, context_dim], or their `keys_values`; None if the config has no cross-attention.
        vector: [B, config.vector] floats, or [B, 1] rows of the label table; None if the config has neither.
        guidance: [B, config.guidance], the scale as `guidance_features`; None if the config takes none, or t holds it.
        control: what ControlNets and T2I-Adapters add; None: nothing.
        """
        config, dtype = self.config, self.dtype
        blocks = Blocks(config, dtype, self.remat, t, context, vector, guidance)
        control = control or Residuals()

        h = conv3x3(config.channels[0], "conv_in", dtype)(x.astype(dtype))
        h, skips = blocks.down(h, control.levels)
        h = blocks.middle(h)
        for more in (*control.levels[len(config.channels) :], control.middle):
            h = h if more is None else h + more.astype(h.dtype)
        if control.skips:
            skips = [skip + more.astype(skip.dtype) for skip, more in zip(skips, control.skips, strict=True)]

        for level in reversed(range(len(config.channels))):
            for i in range(config.blocks + 1):
                h = blocks.res(f"up_{level}_res_{i}", jnp.concatenate([h, skips.pop()], axis=-1), level)
                if config.attention[level]:
                    h = blocks.attend(f"up_{level}_attn_{i}", h, level, config.depths_up[level][i])
            if level != 0:
                h = blocks.between(f"up_{level}_upsample", h, level, skips[-1].shape[1:3])

        h = nn.silu(GroupNorm(config.groups, 1e-5, name="norm_out")(h))
        h = conv3x3(config.out_channels, "conv_out", dtype, init=nn.initializers.zeros_init())(h)
        return h.astype(jnp.float32)
