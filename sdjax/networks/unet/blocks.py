"""The blocks of a UNet, its way down and its middle, of which a ControlNet is a copy."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.networks.unet.config import UNetConfig
from sdjax.nn.layers import Dense, ResBlock, conv3x3, timestep_embedding
from sdjax.nn.transformer import AttentionBlock, SpatialTransformer, block_name
from sdjax.types import Array

#: name of a transformer -> its cross-attention's keys and values, [B, L, C], and behind them those of image prompts
KeysValues = dict[str, tuple[Array, ...]]
TimeShifts = dict[str, Array]  # name of a ResBlock -> what the time adds in it, [B, C]


class Residuals(NamedTuple):
    """What ControlNets and T2I-Adapters add in a UNet. Its leaves are as large as what they are added to, or 1 x 1."""

    skips: tuple[Array, ...] = ()  # one for each skip in the order in which they arise; empty: nothing
    middle: Array | None = None  # to the middle's output
    levels: tuple[Array, ...] = ()  # one for each level: to its end, before it becomes a skip; one more: to the middle


def label_of(vector: Array) -> Array:
    """Returns the rows of the label table that a Cond's vector [B, 1] names, int32 [B]."""
    return vector[:, 0].astype(jnp.int32)


class Blocks:
    """Makes the blocks of one call of a Linen module, by their names. Use it inside of an `nn.compact` method."""

    def __init__(
        self,
        config: UNetConfig,
        dtype: Any,
        remat: bool,
        t: Array | TimeShifts,
        context: Array | KeysValues | None = None,
        vector: Array | None = None,
        guidance: Array | None = None,
    ):
        """t, context, vector, guidance: as `UNet` takes them. It embeds the time. remat: see `UNet`."""
        self.config, self.dtype = config, dtype
        blocks = ResBlock, SpatialTransformer, AttentionBlock
        self.kinds = [*map(nn.remat, blocks)] if remat else blocks
        time, self.shifts = (None, t) if isinstance(t, dict) else (t, {})
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
        self.time = time
        self.context = context if context is None or isinstance(context, dict) else context.astype(dtype)

    def res(self, name: str, h: Array, level: int, resize: str | None = None) -> Array:
        config = self.config
        shape = (config.groups, 1e-5, self.dtype, True, config.scale_shift, resize)
        return self.kinds[0](config.channels[level], *shape, name=name)(h, self.time, self.shifts.get(name))

    def between(self, name: str, h: Array, level: int, size: tuple[int, int] | None = None) -> Array:
        """To the level below, or with the size of the skip that h meets next, (rows, columns), to the one above."""
        if self.config.updown:
            return self.res(name, h, level, "up" if size else "down")
        how = {"enlarge": True} if size else {"stride": 2}
        convolved = conv3x3(self.config.channels[level], name, self.dtype, **how).of(h.shape[-1])
        return convolved(h, size) if size else convolved(h)

    def attend(self, name: str, h: Array, level: int, depth: int) -> Array:
        config, heads = self.config, self.config.heads[level]
        if not config.cross:
            return self.kinds[2](heads, config.groups, self.dtype, name=name)(h)
        of = lambda key: self.context[key] if isinstance(self.context, dict) else self.context
        first = lambda key: None if config.attends_itself[level] else of(f"{key}/text")
        keys = [f"{name}/{block_name(i)}" for i in range(depth)]
        given = [(of(key), first(key)) for key in keys]
        transformer = self.kinds[1](heads, config.groups, config.upcast_attention, self.dtype, depth, name=name)
        return transformer(h, given)

    def down(self, h: Array, added: tuple[Array, ...] = ()) -> tuple[Array, list[Array]]:
        """Returns what h, the output of the first convolution, becomes on the way down, and the skips.

        added: `Residuals.levels`. One that is half as large as its level is added behind the step to the next level.
        """
        config, skips = self.config, [h]
        top = len(config.channels) - 1
        for level in range(top + 1):
            feature = added[level] if added else None
            for i in range(config.blocks):
                h = self.res(f"down_{level}_res_{i}", h, level)
                if config.attention[level]:
                    h = self.attend(f"down_{level}_attn_{i}", h, level, config.depths[level])
                if feature is not None and i == config.blocks - 1 and feature.shape[1:3] == h.shape[1:3]:
                    h, feature = h + feature.astype(h.dtype), None
                skips.append(h)
            if level != top:
                h = self.between(f"down_{level}_downsample", h, level)
                if feature is not None and feature.shape[1:3] == h.shape[1:3]:
                    h, feature = h + feature.astype(h.dtype), None
                skips.append(h)
            if feature is not None:
                raise SdjaxError(f"control: its feature {list(feature.shape)} does not fit level {level} of the UNet")
        return h, skips

    def middle(self, h: Array) -> Array:
        h = self.res("mid_res_0", h, -1)
        if self.config.middle:
            h = self.attend("mid_attn", h, -1, self.config.depths[-1])
            h = self.res("mid_res_1", h, -1)
        return h
