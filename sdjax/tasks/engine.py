"""Runs every image task: splits its images into chunks that fit on the devices, and each chunk passes stages.py.

With `progress` or `preview` the engine walks the plan one row at a time and carries the state on, instead of calling
back from inside the scan: XLA programs that call Python cannot be kept in the persistent compilation cache, and the
program of one row serves any number of steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.conditioning.text import text_tower_of
from sdjax.devices.placement import copy_over, over, split_over
from sdjax.diffusion import noise
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.rows import Row
from sdjax.image.masks import composed, feather_masks
from sdjax.image.pixels import pixels_to_pil
from sdjax.model.value import StableDiffusion
from sdjax.nn.kernels.backends import here
from sdjax.tasks import stages
from sdjax.tasks.image_prompts import Own, image_prompts_of, own_of
from sdjax.tasks.preparing import Chunk, guide_of, prepare
from sdjax.tasks.remarks import announce, remark_beginning
from sdjax.tasks.request import Request
from sdjax.tasks.request_control import remark_intervals
from sdjax.tasks.request_sdxl import turn_of
from sdjax.tasks.sides import Sides, read_sides
from sdjax.tasks.steering import Steer, controls_of, steers_of
from sdjax.tasks.work import each_work, plan_work
from sdjax.text.prompt import Tokens
from sdjax.types import Array, Cond, Params


class Trajectory(NamedTuple):
    """All of a walk, for output="trajectory"; n is the number of evaluations of the model."""

    sigma: np.ndarray  # [n]
    x: np.ndarray  # [n, B, h, w, 4]: what the model was called with, before inpainting adds its part
    x0: np.ndarray  # [n, B, h, w, 4]: the denoiser's answer, after guidance
    latents: np.ndarray  # [B, h, w, 4]: the end of the walk


def evaluations(plan: Plan) -> int:
    """Returns how many times a plan calls the model for each chunk."""
    return int(np.sum(plan.rows.live))


def draw_request(
    sd: StableDiffusion,
    request: Request,
    plan: Plan,
    pictures=None,
    masks=None,
    feather: float = 0.0,
    cells=None,
    stream: int | None = None,
    before: int = 0,
    after: int = 0,
    sides: Sides | None = None,
    beside: Cond | None = None,
    hole: np.ndarray | None = None,
    watch: Callable[[int, int, Callable[[], Array]], None] | None = None,
):
    """Draws all images of a request and returns them in the form that options.output says.

    pictures, masks: float32 arrays as `read_images` and `read_masks` return them, one for all images or one for each.
    feather: see `feather_masks`.
    cells: the masks for latents, see `cells_of`.
    stream: see `noise.image_draws`.
    before, after: evaluations of other walks before and after this one, which `progress` counts too.
    sides: the request's prompts, if they were read before; None reads them.
    beside: what the task adds to both sides of guidance, one entry for each image.
    hole: [B], what a walk with a strength starts from inside the masks: so much of its own noise, not `pictures`.
    watch: watch(step, total, picture) is called after each evaluation in place of `progress` and `preview`, one of
        which the options must have; picture() returns the pixels of x0 of the images that are drawn then.
    """
    if not plan.signal:
        remark_beginning(sd.config, request.options, plan)
    if watch is not None:  # of one length, so that no number of steps compiles anew
        longest = 1 << (2 * sd.config.schedule.timesteps - 1).bit_length()
        plan = plan._replace(levels=np.pad(plan.levels, (0, longest - len(plan.levels))))
    options, count = request.options, request.count
    each = partial(repeat_for, count=count)
    latents = None if options.latents is None else np.asarray(options.latents)  # it may be a list
    controls, hints = controls_of(sd.config, request)
    remark_intervals(controls, plan)
    image_prompts, looks = image_prompts_of(sd, request)
    whole = Chunk((), request.seeds, latents, each(pictures), each(masks), each(cells), beside, hints, looks)
    whole = whole._replace(
        guidance=request.guidance, others=request.others, hole=hole if hole is None else hole.reshape(-1, 1, 1, 1)
    )
    whole = jax.tree.map(np.asarray, whole)
    sides = sides or read_sides(sd, request)
    chunks = len(plan_work(sd, request, sides, made=False))
    rows, results = evaluations(plan), [None] * count
    models, params, steered, adapters, where = [], None, [], [], None
    weight = (
        None if masks is None or options.output in ("latents", "trajectory") else each(feather_masks(masks, feather))
    )

    def in_form(places: np.ndarray):
        """Returns the images `places`, which are drawn, in the form that options.output says."""
        result = jax.tree.map(lambda *leaves: np.stack(leaves), *(results[place] for place in places))
        if options.output == "trajectory":
            x, x0 = (np.moveaxis(leaf, 1, 0) for leaf in (result.x, result.x0))
            return Trajectory(plan.rows.sigma[:rows], x, x0, result.latents)
        if weight is not None:
            result = composed(whole.pictures[places], result, weight[places])
        return pixels_to_pil(result) if options.output == "pil" else result

    for n, part in enumerate(each_work(sd, request, sides)):
        asked, negatives = zip(*part.sides, strict=True)
        chunk = jax.tree.map(itemgetter(part.places), whole)._replace(asked=asked)
        done, total = before + n * rows, before + chunks * rows + after
        report = partial(report_step, request, part.places[: part.length], done, total, watch)
        if not models or part.sd is not models[0] or part.devices != where:  # once for all chunks of a model
            models = [part.sd] if options.refiner is None else [part.sd, with_vae(options.refiner, part.sd)]
            params, where = [copy_over(model.params, part.devices) for model in models], part.devices
            steered = [stages.cast_unet(copy_over(one.control.params, where), sd.dtype) for one in controls]
            adapters = [own_of(one, where) for one in image_prompts]
        chunk = split_over(chunk, part.devices)
        announce(models, request, plan, chunk, part.devices)
        with over(part.devices), here():
            steers = steers_of(controls, steered, chunk.hints or (), plan, sd.dtype) or None
            images = draw_chunk(models, params, request, plan, chunk, negatives, report, stream, steers, adapters)
        for i, place in enumerate(part.places[: part.length]):
            results[place] = jax.tree.map(itemgetter(i), images)
        if options.finished is not None:
            options.finished([*map(int, part.places[: part.length])], in_form(part.places[: part.length]))
    return in_form(np.arange(count))


def report_step(
    request: Request,
    places: np.ndarray,
    done: int,
    total: int,
    watch: Callable[[int, int, Callable[[], Array]], None] | None,
    row: int,
    picture: Callable[[], Array],
) -> None:
    """Calls `watch`, or `progress` and `preview`, after row number `row` (from 1 on) of a chunk.

    places: the chunk's images. done, total: evaluations before this chunk, and of everything.
    picture: returns the pixels of the row's x0.
    """
    options, step = request.options, done + row
    if watch is not None:
        return watch(step, total, picture)
    if options.preview and step % options.preview_every == 0 and step != total:
        options.preview(step, [*map(int, places)], pixels_to_pil(picture())[: len(places)])
    if options.progress:
        options.progress(step, total)


def repeat_for(values: np.ndarray | None, count: int) -> np.ndarray | None:
    """Repeats values that were given once, or once for each picture, to one for each of `count` images."""
    if values is None or len(values) == count:
        return values
    if len(values) == 1:
        return np.broadcast_to(values, (count, *values.shape[1:]))
    return values.repeat(count // len(values), axis=0)


def with_vae(refiner: StableDiffusion, sd: StableDiffusion) -> StableDiffusion:
    """Returns a refiner with the VAE of the model before it, so that both see the same latents of a picture."""
    return replace(
        refiner, config=replace(refiner.config, vae=sd.config.vae), params=refiner.params | {"vae": sd.params["vae"]}
    )


def draw_chunk(
    models: Sequence[StableDiffusion],
    params: Sequence[Params],
    request: Request,
    plan: Plan,
    chunk: Chunk,
    negatives: Sequence[Tokens | Cond],
    report,
    stream,
    steers: tuple[Steer, ...] | None = None,
    adapters: Sequence[Own] = (),
):
    """Draws one chunk. Returns host arrays whose first axis is the image: latents, pixels or a Trajectory.

    models: the model and, if there is one, the refiner, which takes over the walk's state at its first row.
    params: theirs, on the chunk's devices.
    report(row, picture) is called after each row if the options have `progress` or `preview`.
    steers, adapters: the controls and the image prompts, which steer the first model alone.
    """
    options, walks, begin = request.options, [], None
    draws = noise.image_draws(
        chunk.seeds,
        np.uint32(options.variation_seed) if chunk.others is None else chunk.others,
        np.float32(options.variation_strength),
        stream,
    )
    for sd, own, asked, negative in zip(models, params, chunk.asked, negatives, strict=True):
        static = {"config": sd.config, "dtype": sd.dtype}
        text, vectors = (None, None) if sd.config.text is None else text_tower_of(sd, options.clip_skip)
        args = own, chunk, asked, negative, draws, plan, request.shape, text, vectors
        steering = {"controls": [one.params for one in steers or ()], "adapters": adapters}
        *sides, known, state = prepare(*args, **steering, **static)
        unet = stages.cast_unet(own["unet"], sd.dtype)  # once: every call of the walk would make a copy of its own
        guide = guide_of(sd.config, request, plan)._replace(control=steers)
        if chunk.guidance is not None:
            guide = guide._replace(scales=jnp.broadcast_to(chunk.guidance, (len(plan.levels), len(chunk.seeds))))
        steers, adapters = None, ()
        walk = partial(stages.walk, unet, *sides, guide, draws, known)
        walks.append(partial(walk, function=options.guidance_fn, **static))
        begin = begin or (known, state)
    (known, state), vae = begin, params[0]["vae"]
    static = {"config": models[0].config, "dtype": models[0].dtype}
    keep, rows, traces = options.output == "trajectory", evaluations(plan), []
    turn = rows if len(models) == 1 else turn_of(plan, models[0].config, options.refiner_start)
    if options.progress is None and options.preview is None:
        for walk, own, places in zip(walks, legs(plan.rows, turn), (slice(turn), slice(turn, rows)), strict=False):
            if not own.live.any():
                continue
            state = walk(own, state, keep=keep)
            if keep:
                state, trace = state
                traces.append(jax.tree.map(lambda leaf, places=places: np.asarray(leaf)[places], trace))
    else:
        for n in range(rows):
            row = jax.tree.map(itemgetter(slice(n, n + 1)), plan.rows)
            state, trace = walks[n >= turn](row, state, keep=True)
            if keep:
                traces.append(jax.tree.map(np.asarray, trace))
            jax.block_until_ready(state.x)
            report(n + 1, lambda trace=trace: stages.decode_clipped(vae, trace.x0[0], **static))
    x = state.x if known is None else jnp.where(known.mask == 0, known.x0, state.x)
    if keep:
        xs, x0s = (np.moveaxis(np.concatenate(leaves), 1, 0) for leaves in zip(*traces, strict=True))
        return Trajectory(None, xs, x0s, np.asarray(x))
    return np.asarray(x if options.output == "latents" else stages.decode_clipped(vae, x, **static))


def legs(rows: Row, turn: int) -> list[Row]:
    """Returns a plan's rows for the model and for its refiner, which takes over at row `turn`. What is the other's is
    skipped, so that both are of one length."""
    place = np.arange(len(rows.live))
    return [rows._replace(live=rows.live & mine) for mine in (place < turn, place >= turn)]
