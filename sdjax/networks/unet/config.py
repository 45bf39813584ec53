"""The configuration of the UNet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """The denoising UNet: ResBlocks with time embedding, and attention: to a context, or to the picture alone."""

    in_channels: int = 4  # 9 for inpainting: latents, mask, the masked picture's latents
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2  # ResBlocks per level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # per level: a transformer after each ResBlock?
    heads: tuple[int, ...] = (8, 8, 8, 8)  # attention heads per level; the middle block uses the last level's
    context_dim: int = 768
    groups: int = 32
    linear_projection: bool = False  # True: files hold proj_in / proj_out as Linear (v2); False: as 1x1 conv (v1)
    upcast_attention: bool = False  # q k^T from float32 inputs, whatever the dtype is (v2.1 overflows float16)
    cross: bool = True  # transformers with cross-attention; False: LDM's attention blocks, which take no context
    depth: tuple[int, ...] = ()  # transformer blocks per level, the middle as the last level; empty: 1 everywhere
    self_attention: tuple[bool, ...] = ()  # per level: False: attn1 attends to the context as well; empty: all True
    updown: bool = False  # ResBlocks change the resolution, not single convolutions (resblock_updown)
    scale_shift: bool = False  # the time scales and shifts a norm, it is not added (use_scale_shift_norm)
    labels: int | None = None  # rows of the table whose row Cond.vector names, added to the time embedding
    vector: int | None = None  # width of a Cond.vector of floats, added to the time embedding after an MLP
    guidance: int | None = (
        None  # features of the guidance scale that the time embedding takes (LCM); None: it takes none
    )
    depth_up: tuple[tuple[int, ...], ...] = ()  # `depth` on the way up, per level and block; empty: as on the way down
    middle: bool = True  # False: the middle is one ResBlock alone
    added: bool = False  # diffusers calls that MLP add_embedding (SDXL), else class_embedding

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks in each spatial transformer, per level."""
        return self.depth or (1,) * len(self.channels)

    @property
    def depths_up(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks on the way up, per level and block in the order in which they run."""
        return self.depth_up or tuple((depth,) * (self.blocks + 1) for depth in self.depths)

    @property
    def attends_itself(self) -> tuple[bool, ...]:
        """Does the first attention of a transformer block attend to the picture? Per level."""
        return self.self_attention or (True,) * len(self.channels)

    @property
    def takes_vector(self) -> bool:
        """Does the time embedding take a Cond's vector?"""
        return self.labels is not None or self.vector is not None

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Channels of the skips, in the order in which they arise on the way down."""
        found = [self.channels[0]]
        for level, wide in enumerate(self.channels):
            found += [wide] * (self.blocks + (level != len(self.channels) - 1))
        return tuple(found)

    @property
    def factor(self) -> int:
        """How many latents along a side make one position of the lowest level."""
        return 2 ** (len(self.channels) - 1)

    @property
    def unit(self) -> int:
        """The number that the sides of the latents must be multiples of. Where single convolutions change the
        resolution, h gets the size of the skip that it meets, and any size goes."""
        return self.factor if self.updown else 1
