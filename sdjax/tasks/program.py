"""txt2img as a program in a file: traced and lowered once, for one or several platforms; run without tracing.

    sdjax.save_program(sd, "emoji.sdjax", steps=20, num_images=4)
    program = sdjax.load_program("emoji.sdjax")
    pixels = program(sd, "a red apple", seed=7)        # float32 [4, H, W, 3], what txt2img gives for output="pixels"

The model's config, the dtype, the pictures' size and number and the number of steps (up to the next power of two, see
`sdjax.sampling.plan`) are fixed. The parameters are an argument: one file serves every model of the same config.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from sdjax.checks import check_model
from sdjax.conditioning.text import read_prompts, text_tower_of
from sdjax.diffusion import noise
from sdjax.diffusion.plan import Plan
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.files import written_whole
from sdjax.model.value import StableDiffusion
from sdjax.tasks import stages
from sdjax.tasks.options import OPTIONS, TaskOptions
from sdjax.tasks.plans import plan_of
from sdjax.tasks.preparing import Chunk, guide_of, prepare
from sdjax.tasks.request import Request, check
from sdjax.text.prompt import Tokens, stack
from sdjax.text.tokenizer import as_list
from sdjax.types import Array, Params

MAGIC = b"sdjax program 2\n"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: custom calls in our programs that jax.export does not guarantee across versions: cuDNN's attention
UNVOUCHED = ("__cudnn$fmhaSoftmax",)


def image_program(
    params: Params,
    tokens: Tokens,
    negative: Tokens,
    seeds: Array,
    guide: stages.Guide,
    plan: Plan,
    *,
    config: Config,
    dtype: Any,
    shape: tuple[int, int, int],
) -> Array:
    """txt2img from token ids to pixels, clipped float32 [B, H, W, 3], as one traceable function.

    It computes what `engine.draw_chunk` computes for txt2img.
    tokens, negative: of B prompts, and of batch 1.
    seeds: uint32 [B].
    shape: (h, w, C) of a picture's latents.
    """
    static = {"config": config, "dtype": dtype}
    draws = noise.image_draws(seeds, jnp.uint32(0), jnp.float32(0))
    cond, uncond, known, state = prepare(
        params, Chunk((), seeds), tokens, negative, draws, plan, shape, config.text, **static
    )
    state = stages.walk(params["unet"], cond, uncond, guide, draws, known, plan.rows, state, **static)
    return stages.decode_clipped(params["vae"], state.x, **static)


def program_inputs(sd: StableDiffusion, request: Request) -> tuple:
    """Returns the arguments of `image_program` that come after params, as host arrays.

    SdjaxError: a prompt of several chunks, composed with AND, or with a word of add_embedding.
    """
    options = request.options
    plan, text = plan_of(sd, options), text_tower_of(sd)[0]
    (negative,) = read_prompts(sd, request.negative, options.syntax, composed=False)
    found = read_prompts(sd, request.prompts, options.syntax)
    if any(prompt.shape != (1, 1) for prompt in (*found, negative)):
        raise SdjaxError(
            f"prompt: longer than the {text.length - 2} tokens of a program, or composed with AND; txt2img takes it"
        )
    tokens, null = stack(found, text), stack([negative], text)
    if max(tokens.ids.max(), null.ids.max()) >= text.vocab_size:
        raise SdjaxError("prompt: a program has no words of add_embedding; txt2img takes it")
    return tokens, null, request.seeds, guide_of(sd.config, request, plan), plan


def save_program(
    sd: StableDiffusion,
    path: str | Path,
    steps: int = 50,
    num_images: int = 1,
    height: int | None = None,
    width: int | None = None,
    platforms: Sequence[str] = ("cpu",),
) -> None:
    """Writes txt2img as a program, for models with sd's config, parameter shapes and dtype; `load_program` reads it.

    The program is lowered here and compiled where it runs. It uses cuDNN's attention only if cuDNN is installed here.
    sd: sd.params may be shapes (jax.ShapeDtypeStruct).
    path: the file to write.
    steps, num_images, height, width: as for txt2img; the program serves these alone (steps: up to a power of two).
    platforms: some of cpu, cuda, rocm, tpu.
    SdjaxError: an argument out of range, an unknown platform, an inpainting model.
    """
    check_model(sd)
    check_path(path)
    several = isinstance(platforms, Sequence) and all(isinstance(one, str) for one in platforms)
    if not several or not platforms or not set(platforms) <= set(PLATFORMS):
        said = ", ".join(platforms) if several and not isinstance(platforms, str) and platforms else repr(platforms)
        raise SdjaxError(f"platforms {said}: some of {', '.join(PLATFORMS)}")
    if sd.config.text is None or sd.config.unet.takes_vector or family_of(sd.config).concat is not None:
        raise SdjaxError(f"sd {sd.config.name}: programs are of models that take text alone")
    request = check(sd.config, "", TaskOptions(steps=steps, num_images=num_images, height=height, width=width))
    with written_whole(path) as scratch:
        scratch.write_bytes(program_bytes(sd, request, platforms))


def check_path(path: Any) -> None:
    if not isinstance(path, (str, Path)):
        raise SdjaxError(f"path is {type(path).__name__}: the name of a file expected")


def program_bytes(sd: StableDiffusion, request: Request, platforms: Sequence[str]) -> bytes:
    """Returns the content of a program file: its settings as a line of JSON, then the program of each platform."""
    parts, rows = export_program(sd, request, platforms)
    bodies = {platform: exported.serialize() for platform, exported in parts.items()}
    height, width = (side * sd.config.vae.factor for side in request.shape[:2])
    settings = {
        "model": sd.config.name,
        "config": computed(sd.config),
        "dtype": sd.dtype.name,
        "num_images": request.count,
        "height": height,
        "width": width,
        "rows": rows,
        "steps": request.options.steps,
        "jax": jax.__version__,
        "bytes": {platform: len(body) for platform, body in bodies.items()},
    }
    return b"".join([MAGIC, json.dumps(settings).encode(), b"\n", *bodies.values()])


def computed(config: Config) -> dict[str, Any]:
    """Returns the fields of a config that a program depends on, as JSON returns them, by names like "unet.channels"."""
    parts = ((part, asdict(getattr(config, part))) for part in ("text", "vae", "unet", "schedule"))
    return json.loads(json.dumps({f"{part}.{key}": value for part, found in parts for key, value in found.items()}))


def export_program(
    sd: StableDiffusion, request: Request, platforms: Sequence[str]
) -> tuple[dict[str, export.Exported], int]:
    """Returns the program of a request's shapes for each platform, and the number of rows in its plan.

    The programs take the leaves of `image_program`'s arguments. There is one for each platform, because a single one
    for all would have to contain, for every platform, operations that only another platform can run.
    """
    inputs = program_inputs(sd, request)
    leaves, tree = jax.tree.flatten((sd.params, *inputs))
    static = {"config": sd.config, "dtype": sd.dtype, "shape": request.shape}
    flat = jax.jit(lambda *leaves: image_program(*jax.tree.unflatten(tree, leaves), **static))
    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in leaves]
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in UNVOUCHED]
    lower = lambda platform: export.export(flat, platforms=[platform], disabled_checks=checks)(*shapes)
    return {platform: lower(platform) for platform in platforms}, len(inputs[-1].levels)


@dataclass(frozen=True)
class Program:
    """A loaded program. `settings` says what it was made with: model, config, dtype, sizes, steps, JAX's version."""

    path: Path
    settings: dict[str, Any]
    call: Callable[..., Array]
    shapes: list[tuple]  # (shape, dtype) of its inputs

    def __repr__(self) -> str:
        made = self.settings
        return (
            f"<Program {self.path}: {made['num_images']} x {made['width']} x {made['height']} px, "
            f"{made['steps']} steps, {made['model']} in {made['dtype']}>"
        )

    def __call__(self, sd: StableDiffusion, prompt: str | Sequence[str], **options: Any) -> np.ndarray:
        """Returns what txt2img returns for output="pixels": clipped float32 [num_images, H, W, 3].

        sd: a model of the config and dtype that the program was made for.
        prompt: one for all pictures, or a list of num_images.
        options: those of txt2img that need no other program, such as negative_prompt, seed, guidance_scale, sampler,
            eta, and steps up to the power of two.
        SdjaxError: any other option, another model, a prompt that the program does not take.
        """
        made, default = self.settings, TaskOptions()
        prompts = as_list(prompt)
        if len(prompts) not in (1, made["num_images"]):
            raise SdjaxError(f"prompt: {len(prompts)} prompts, {self.path} draws {made['num_images']} pictures at once")
        fixed = {"height": made["height"], "width": made["width"], "num_images": made["num_images"] // len(prompts)}
        fixed |= {"output": "pixels"}
        without = {option.name for option in OPTIONS if not option.program}
        for name, value in options.items():
            if name not in {option.name for option in OPTIONS}:
                raise SdjaxError(f"{name}: not an option of txt2img")
            if name in without and (np.ndim(value) or value != fixed.get(name, getattr(default, name))):
                raise SdjaxError(
                    f"{name}: {self.path} has no other than {fixed.get(name, getattr(default, name))!r}; "
                    "txt2img takes it"
                )
        asked = TaskOptions(**{"steps": made["steps"]} | options | fixed)
        theirs = computed(sd.config) | {"dtype": sd.dtype.name}
        for key, value in (made["config"] | {"dtype": made["dtype"]}).items():
            if theirs.get(key) != value:
                raise SdjaxError(
                    f"{self.path}: made for {made['model']} with {key} {value!r}, {sd.config.name} has "
                    f"{theirs.get(key)!r}"
                )
        inputs = program_inputs(sd, check(sd.config, prompts, asked))
        leaves = jax.tree.leaves((sd.params, *inputs))
        found = [(np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves]
        if (rows := len(inputs[-1].levels)) != made["rows"]:
            raise SdjaxError(f"steps {asked.steps}: takes {rows} rows, {self.path} has {made['rows']}")
        if found != self.shapes:
            raise SdjaxError(
                f"{self.path}: made for {made['model']}, whose parameters have other dtypes than those of "
                f"this {sd.config.name}"
            )
        return np.asarray(self.call(*leaves))


def load_program(path: str | Path) -> Program:
    """Reads a file of `save_program`. SdjaxError: it is none, or has no program for this platform."""
    check_path(path)
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SdjaxError(f"{path}: cannot be read ({error.strerror})") from None
    head, _, body = content.removeprefix(MAGIC).partition(b"\n")
    gpu = "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"
    platform = jax.default_backend().replace("gpu", gpu)
    try:
        if not content.startswith(MAGIC):
            raise ValueError("another beginning")
        settings, start, exported = json.loads(head), 0, None
        for name, size in settings["bytes"].items():
            if name == platform:
                exported = export.deserialize(bytearray(body[start : start + size]))
            start += size
        if start != len(body):
            raise ValueError("another length")
    except Exception as error:  # a broken file may raise anything
        raise SdjaxError(f"{path}: not a program of sdjax.save_program ({type(error).__name__})") from None
    if exported is None:
        raise SdjaxError(f"{path}: for {', '.join(settings['bytes'])}, not for {platform}")
    shapes = [(aval.shape, np.dtype(aval.dtype)) for aval in exported.in_avals]
    return Program(path, settings, jax.jit(exported.call), shapes)
