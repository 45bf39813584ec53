"""What a UNet is trained to be conditioned on: CONDITIONS, one row for each kind.

A row says which column of the data the condition comes from, how a model's config changes so that it takes it, what of
it a batch holds, and how a Cond is made of that inside the loss. The networks that make the condition are trained with
the UNet: the trained parameters are then {"unet": ..., and each of them}, else the UNet's alone.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.conditioning.layouts import layout_tokens
from sdjax.conditioning.towers import encode_prompt
from sdjax.data.columns import BOXES, CLASS, DEPTH, LOWRES, MAP, MASK, Column
from sdjax.data.source import Pictures
from sdjax.diffusion.noise import example_keys
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of, own_scale
from sdjax.model.load import initial_params
from sdjax.model.value import StableDiffusion
from sdjax.networks.bert.config import LayoutConfig
from sdjax.networks.bert.network import Bert
from sdjax.networks.labels.network import ClassConfig, ClassTable
from sdjax.networks.table import param_shapes
from sdjax.networks.unet.config import UNetConfig
from sdjax.training import beside
from sdjax.training.beside import Given, each_view
from sdjax.training.diffusion import Conditioner, Null, text_cond, zero_null
from sdjax.types import Array, Batch, Cond, Params

ORDER = 5  # for fold_in of an example's key, beside diffusion.CAPTION and OFFSET: the order of a layout's objects


class Condition(NamedTuple):
    """A kind of condition."""

    part: str | None  # the network that makes it, trained with the UNet: its name in Config
    column: Column | None
    adapted: Callable[[Config, Pictures, bool], Config]  # (a model's config, the data, is there a null?) -> its config
    given: Callable[[StableDiffusion, Pictures, int], Given | None]  # (model, data, views) -> what a batch holds of it
    cond: Callable[[Config, Params, Batch, Array, Array], Cond]  # (config, the part's parameters, ...) -> Cond
    keeps_text: bool = False  # does a text tower that the model has stay?


# ---- classes


def with_classes(config: Config, source: Pictures, null: bool) -> Config:
    """Returns the config with a table of the data's classes and, after them, the null class."""
    count = 1 + max((value for i, value in enumerate(source.given) if i not in source.known), default=0)
    table, width = config.class_table, config.unet.context_dim
    if table is None or table.classes - table.null < count or table.width != width:
        table = ClassConfig(count + 1, width, null)
    return without_text(replace(config, class_table=replace(table, null=null), layout=None), width)


def classes_given(sd: StableDiffusion, source: Pictures, views: int) -> Given:
    values = np.array([value if i not in source.known else 0 for i, value in enumerate(source.given)], np.int32)
    return lambda rows, chosen: values[rows]


def class_cond(config: Config, params: Params, batch: Batch, drop: Array, key: Array) -> Cond:
    ids = jnp.where(drop, config.class_table.classes - 1, batch.given)
    return Cond(ClassTable(config.class_table).apply({"params": params}, ids))


# ---- layouts


def with_layout(config: Config, source: Pictures, null: bool) -> Config:
    """Returns the config with an encoder of the data's layouts: as many objects as the fullest one has.

    Corners have as many places along a side as the picture has pairs of pixels, at most 90.
    """
    layouts = [value for i, value in enumerate(source.given) if i not in source.known]
    labels = 1 + max((box[0] for layout in layouts for box in layout), default=0)
    most = max(1, max(map(len, layouts), default=1))
    tower, width = config.layout, config.unet.context_dim
    if tower is None or tower.objects < most or tower.width != width or (tower.labels or tower.absent) < labels:
        grid = min(90, max(config.size // 2, 2))
        tower = LayoutConfig(
            vocab_size=max(grid * grid + 1, labels + 1),
            length=3 * most + 2,
            width=width,
            layers=config.text.layers if config.text else 4,
            labels=labels,
        )
    return without_text(replace(config, layout=replace(tower, null=null), class_table=None), width)


def layouts_given(sd: StableDiffusion, source: Pictures, views: int) -> Given:
    """Returns a function of rows that gives the tokens of their views: boxes stay relative to the whole picture."""
    mirror = lambda box: (1 - box[2], box[1], 1 - box[0], box[3])

    def tokens(row: int, original: int, epoch: int, group: int) -> np.ndarray:
        crop, mirrored = source.framing(row, original, epoch, group)
        boxes = [(label, *mirror(box)) if mirrored else (label, *box) for label, *box in source.given[row]]
        return layout_tokens(sd.config.layout, boxes, mirror(crop) if mirrored else crop)

    return each_view(tokens, views)


def layout_cond(config: Config, params: Params, batch: Batch, drop: Array, key: Array) -> Cond:
    """The objects are in another order in each step, the absent ones last; a dropped layout has the crop alone."""
    tower = config.layout
    objects, crop = batch.given[:, :-2].reshape(-1, tower.objects, 3), batch.given[:, -2:]
    draw = lambda k: jax.random.uniform(jax.random.fold_in(k, ORDER), (tower.objects,))
    order = jnp.argsort(jax.vmap(draw)(example_keys(key, batch.index)) + (objects[..., 0] == tower.absent), axis=1)
    objects = jnp.take_along_axis(objects, order[..., None], axis=1)
    objects = jnp.where(drop[:, None, None], tower.absent, objects).reshape(len(crop), -1)
    return Cond(Bert(tower).apply({"params": params}, jnp.concatenate([objects, crop], axis=1)))


# ---- nothing


def without_condition(config: Config, source: Pictures | None, null: bool) -> Config:
    """Returns the config of a model that is conditioned on nothing: its UNet attends to the picture alone."""
    config = replace(config, text=None, class_table=None, layout=None)
    plain = UNetConfig()  # what does not matter to such a UNet has its default
    fields = {name: getattr(plain, name) for name in ("context_dim", "depth", "linear_projection", "upcast_attention")}
    return replace(config, unet=replace(config.unet, cross=False, **fields))


def without_text(config: Config, width: int) -> Config:
    """Returns the config without a text tower, whose UNet attends to a context of this width."""
    return replace(config, text=None, unet=replace(config.unet, cross=True, context_dim=width))


NOTHING_GIVEN = lambda sd, source, views: None
EMPTY = lambda config, params, batch, drop, key: Cond()
AS_IT_IS = lambda config, source, null: config

CONDITIONS = {
    "text": Condition(None, None, AS_IT_IS, NOTHING_GIVEN, EMPTY, keeps_text=True),
    "class": Condition("class_table", CLASS, with_classes, classes_given, class_cond),
    "layout": Condition("layout", BOXES, with_layout, layouts_given, layout_cond),
    "map": Condition("map", MAP, beside.with_map, beside.maps_given, beside.map_cond, keeps_text=True),
    "mask": Condition(None, MASK, beside.with_mask, beside.masks_given, beside.concat_cond, keeps_text=True),
    "depth": Condition(None, DEPTH, beside.with_depth, beside.depth_given, beside.concat_cond, keeps_text=True),
    "lowres": Condition(None, LOWRES, beside.with_lowres, beside.lowres_given, beside.lowres_cond, keeps_text=True),
    "none": Condition(None, None, without_condition, NOTHING_GIVEN, EMPTY),
}


def reads_captions(name: str, config: Config) -> bool:
    """Is a model of this config, trained on condition `name`, asked for by text (too)?"""
    return CONDITIONS[name].keeps_text and config.text is not None


def conditioned(sd: StableDiffusion, name: str, source: Pictures, null: bool) -> StableDiffusion:
    """Returns the model as it takes the condition `name`: its config, and those of its parameters that stay.

    null: does training drop conditions, so that the model has an unconditional half?
    SdjaxError: the model cannot take it.
    """
    if name == "text" and sd.config.text is None:
        raise SdjaxError(f"condition text: {sd.config.name} has no text tower")
    concat = family_of(sd.config).concat
    if concat not in (None, name):
        raise SdjaxError(f"condition {name}: {sd.config.name} takes a {concat} as well, give a model that does not")
    if name != "text" and sd.config.image is not None:  # in place of a text
        sd = replace(sd, config=replace(sd.config, image=None))
    config = CONDITIONS[name].adapted(sd.config, source, null)  # sets source.beside
    if name != "text" and config.text is None:
        config = replace(config, guidance_scale=own_scale(config))
    family_of(config)
    if config != sd.config:
        config = replace(config, pipeline=None)
    params = {part: value for part, value in sd.params.items() if getattr(config, part) is not None}
    return replace(sd, config=config, params=params, tokenizer=sd.tokenizer if config.text else None)


def trained_parts(name: str) -> tuple[str, ...]:
    """Returns the networks that are trained on condition `name`."""
    part = CONDITIONS[name].part
    return ("unet",) if part is None else ("unet", part)


def starting_params(sd: StableDiffusion, name: str, seed: int) -> Params | Callable[[Any], Params]:
    """Returns the parameters that training on condition `name` starts from, or a function of the seed that makes them.

    What the model's own networks have of the same name and shape stays, the UNet's first convolution gets zeros for new
    channels beside x, a new table of labels is zeros, and the rest is random.
    """
    config, parts = sd.config, trained_parts(name)
    shape = lambda tree: tree if len(parts) > 1 else tree["unet"]
    fresh = lambda seed: {part: initial_params(config, part, seed) for part in parts}
    own = {part: sd.params[part] for part in parts if part in sd.params}
    if not own:  # each device makes its share
        return lambda seed: shape(fresh(seed))
    if all(part in own and same_shapes(own[part], param_shapes(getattr(config, part))) for part in parts):
        return shape(own)
    return shape(fitted(own, jax.jit(fresh)(np.uint32(seed))))


def same_shapes(params: Params, shapes: Params) -> bool:
    sizes = lambda tree: {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree).items()}
    return sizes(params) == sizes(shapes)


def fitted(own: Params, fresh: Params) -> Params:
    """Returns `fresh` with the leaves of `own` where their shapes allow it; new input channels get zeros."""
    found, old = flatten_dict(fresh), flatten_dict(own)
    for path, leaf in found.items():
        have = old.get(path)
        if have is None:
            continue
        if have.shape == leaf.shape:
            found[path] = have
        elif path[-2:] == ("conv_in", "kernel") and have.shape[2] < leaf.shape[2]:
            more = ((0, 0), (0, 0), (0, leaf.shape[2] - have.shape[2]), (0, 0))
            found[path] = jnp.pad(have, more)
    for path in {("unet", "label", "embedding")} & set(found) - set(old):
        found[path] = jnp.zeros_like(found[path])  # the model begins as it was
    return unflatten_dict(found)


def merged(sd: StableDiffusion, name: str, params: Params) -> StableDiffusion:
    """Returns the model with trained parameters."""
    return replace(sd, params=sd.params | (params if len(trained_parts(name)) > 1 else {"unet": params}))


def text_null(sd: StableDiffusion) -> Array | Null:
    """Returns what replaces dropped captions: the empty prompt as the towers encode it, or zeros where SDXL says so."""
    if sd.config.text_2 is None:
        return jnp.asarray(encode_prompt(sd, [""]).context[0])
    if sd.config.zero_negative:
        return zero_null(sd.config)
    cond, width = encode_prompt(sd, [""]), sd.config.text.width
    context, pooled = cond.context[0], cond.vector[0, : sd.config.text_2.projection]
    return Null(context[:, :width], context[:, width:], pooled)


def conditioner(config: Config, name: str, null: Array | Null | None) -> Conditioner:
    """Returns what makes the Cond of a batch in the loss. null: of `text_null`, if there is text."""
    row = CONDITIONS[name]

    def cond(params: Params, batch: Batch, drop: Array, key: Array) -> tuple[Params, Cond]:
        unet, own = (params["unet"], params[row.part]) if row.part else (params, None)
        found = row.cond(config, own, batch, drop, key)
        if null is not None:
            found |= text_cond(batch, null, drop)
        return unet, found

    return cond
