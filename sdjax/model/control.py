"""A loaded ControlNet or T2I-Adapter as a value, and the pure functions that compute what it adds in a UNet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks import is_number
from sdjax.diffusion.guidance import for_images
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.image.hints import read_hints
from sdjax.model.value import millions, stored_in
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.network import ControlNet, embed_hint
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.t2i.network import Adapter
from sdjax.networks.unet.blocks import KeysValues, Residuals, TimeShifts
from sdjax.nn.layers import precise
from sdjax.types import Array, Params


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config"])
@dataclass(frozen=True, eq=False)
class Control:
    """A loaded ControlNet or T2I-Adapter. `sdjax.load_control` returns it.

    config: hashable, a ControlConfig or an AdapterConfig.
    params: in the dtype that they were stored in. It computes in the dtype of the model that it steers.
    """

    config: ControlConfig | AdapterConfig
    params: Params = field(repr=False)

    def __repr__(self) -> str:
        kind = "ControlNet" if isinstance(self.config, ControlConfig) else f"T2I-Adapter ({self.config.kind})"
        return f"<Control {kind}: {millions(self.params)} parameters in {stored_in(self.params)}>"


#: How much a T2I-Adapter's features count where the prompt is more important (sd-webui-controlnet).
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)


def soft_weights(config: ControlConfig | AdapterConfig) -> np.ndarray:
    """Returns a weight for each residual, float64, which rises to 1 at the UNet's middle.

    A ControlNet's are 10^(k / (n - 1) - 1), diffusers' guess mode; lllyasviel's 0.825^(12 - k) differs by 0.6%. One
    whose residuals are pooled has ones.
    """
    count = config.residuals
    if isinstance(config, ControlConfig):
        return np.ones(count) if config.pooled else np.logspace(-1, 0, count)
    return np.array([SOFT_FEATURES[max(0, len(SOFT_FEATURES) - count + i)] for i in range(count)])


@partial(jax.jit, static_argnames=("config", "dtype"))
def look(params: Params, pictures: Array, config: ControlConfig | AdapterConfig, dtype: Any) -> Array | Residuals:
    """Returns what a control makes of pictures [B, H, W, C] in [0, 1] alone. One call serves all steps of a walk.

    It is the picture's embedding for a ControlNet, and all that a T2I-Adapter adds.
    """
    with precise(dtype):
        if isinstance(config, ControlConfig):
            return embed_hint(params, pictures, config, dtype)
        return Adapter(config, dtype).apply({"params": params}, pictures)


def residuals_of(
    config: ControlConfig | AdapterConfig,
    params: Params,
    seen: Array | Residuals,
    weights: Array,
    x: Array,
    t: Array | TimeShifts,
    context: Array | KeysValues | None,
    vector: Array | None,
    dtype: Any,
) -> Residuals:
    """Returns what a control adds in the UNet. Traceable.

    seen: of `look`. weights: [n], one for each residual, or [B, n]. The others are as `ControlNet` takes them.
    """
    if isinstance(config, ControlConfig):
        with precise(dtype):
            seen = ControlNet(config, dtype).apply({"params": params}, x, t, context, seen, vector)
    leaves, tree = jax.tree.flatten(seen)
    leaves = [leaf * for_images(weights[..., i], leaf).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves)


def joined(every: Sequence[Residuals]) -> Residuals | None:
    """Returns the sum of what several controls add, or None of none."""
    total = lambda found: tuple(sum(leaves[1:], leaves[0]) for leaves in zip(*found, strict=True))
    middles = [one.middle for one in every if one.middle is not None]
    skips, levels = ([found for one in every if (found := getattr(one, name))] for name in ("skips", "levels"))
    if not every:
        return None
    return Residuals(total(skips), sum(middles[1:], middles[0]) if middles else None, total(levels))


def input_of(config: ControlConfig | AdapterConfig, x: Array) -> Array:
    """Returns what a control sees of the UNet's input x [B, h, w, c]: all of it, or the latents alone."""
    return x[..., : config.unet.in_channels] if isinstance(config, ControlConfig) else x


# ---- arguments


def as_controls(control: Any) -> list[Control]:
    """Returns the controls of the argument `control`, which is one, a list of them, or None. SdjaxError: another."""
    found = [] if control is None else list(control) if isinstance(control, (list, tuple)) else [control]
    for one in found:
        if not isinstance(one, Control):
            raise SdjaxError(f"control is {type(one).__name__}: what sdjax.load_control gives expected")
    return found


def each_of(name: str, value: Any, control: Any, single: Any) -> list:
    """Returns an argument for each control of `control`: one for all of them, or a list of as many.

    single(value): is it one for all? SdjaxError: a list of another length.
    """
    count = len(as_controls(control))
    if not isinstance(control, (list, tuple)) or single(value):
        return [value] * count
    if not isinstance(value, (list, tuple)) or len(value) != count:
        many = len(value) if isinstance(value, (list, tuple)) else "one"
        raise SdjaxError(f"{name}: {many} for {count} controls, a list of one for each expected")
    return list(value)


def check_fits(config: Config, control: Control) -> None:
    """SdjaxError: the control was made for another kind of model."""
    found, unet, factor = control.config, config.unet, config.vae.factor
    if family_of(config).concat == "lowres" or not unet.cross:
        raise SdjaxError(f"control: {config.name} takes none")
    if found.factor != factor:
        raise SdjaxError(f"control: makes 1 latent of {found.factor} pixels a side, {config.name} of {factor}")
    if isinstance(found, AdapterConfig):
        own = unet.channels + unet.channels[-1:] * found.large
        if found.channels != own:
            raise SdjaxError(f"control: has features of {list(found.channels)} channels, {config.name} has {list(own)}")
        return
    for what, theirs, ours in (
        ("channels", found.unet.channels, unet.channels),
        ("blocks a level", found.unet.blocks, unet.blocks),
        ("a context of width", found.unet.context_dim, unet.context_dim),
        ("labels", found.unet.labels, unet.labels),
        ("a vector of width", found.unet.vector, unet.vector),
    ):
        if theirs != ours:
            raise SdjaxError(f"control: is for a model with {what} {theirs}, {config.name} has {ours}")
    if found.unet.in_channels not in (config.vae.latent_channels, unet.in_channels):
        raise SdjaxError(f"control: takes {found.unet.in_channels} channels, {config.name} has {unet.in_channels}")


def check_scale(name: str, scale: Any, control: Control) -> np.ndarray:
    """Returns a scale as float64 [n], one for each residual. SdjaxError: it is neither a number nor [n] of them."""
    count = control.config.residuals
    values = np.asarray(scale).tolist() if hasattr(scale, "shape") else scale
    values = list(values) if isinstance(values, (list, tuple)) else [values] * count
    if len(values) != count or not all(map(is_number, values)):
        raise SdjaxError(f"{name} {scale!r}: a number, or {count} of them, one for each residual, expected")
    return np.array(values, np.float64)


def check_hints(name: str, image: Any, control: Control, size: tuple[int, int], count: int) -> np.ndarray:
    """Returns the pictures of a control, float32 [Q, H, W, C], where Q is 1 or divides `count`.

    size: (height, width) in pixels. SdjaxError: not so, or no pictures; see `read_hints`.
    """
    if image is None:
        raise SdjaxError(f"{name} None: a picture for the control expected")
    unit = control.config.unshuffle if isinstance(control.config, AdapterConfig) else control.config.factor
    for side, pixels in zip(("height", "width"), size, strict=True):
        if pixels % unit:
            raise SdjaxError(f"{side} {pixels}: this control takes multiples of {unit}")
    found = read_hints(name, image, size, control.config.picture_channels)
    if count % len(found):
        raise SdjaxError(f"{name}: {len(found)} for {count} pictures, one or {count} expected")
    return found


def predicted_residuals(
    sd: Any,
    control: Any,
    image: Any,
    scale: Any,
    x: Array,
    t: Array,
    context: Array | None,
    vector: Array | None,
) -> Residuals | None:
    """Returns what controls add in a call of `sdjax.predict`, whose arguments these are, or None without a control."""
    controls, found = as_controls(control), []
    several = isinstance(control, (list, tuple))
    images = each_of("control_image", image, control, lambda value: not several)
    scales = each_of("control_scale", scale, control, is_number)
    size = tuple(side * sd.config.vae.factor for side in x.shape[1:3])
    for one, picture, own in zip(controls, images, scales, strict=True):
        check_fits(sd.config, one)
        weights = jnp.asarray(check_scale("control_scale", own, one), jnp.float32)
        hints = check_hints("control_image", picture, one, size, len(x))
        hints = np.repeat(hints, len(x) // len(hints), axis=0)
        seen = look(one.params, hints, one.config, sd.dtype)
        found.append(_residuals(one, seen, weights, input_of(one.config, x), t, context, vector, sd.dtype))
    return joined(found)


@partial(jax.jit, static_argnames="dtype")
def _residuals(control, seen, weights, x, t, context, vector, dtype):
    return residuals_of(control.config, control.params, seen, weights, x, t, context, vector, dtype)
