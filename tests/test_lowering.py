"""Drawing and training with Stable Diffusion 1.5 lower for GPUs and TPUs where there is neither, from shapes alone."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sdjax.devices.layouts import FsdpLayout
from sdjax.families.sd import SD15
from sdjax.model.functions import unet_output
from sdjax.model.load import initial_params
from sdjax.model.value import StableDiffusion
from sdjax.networks.image_prompt.names import attentions_of
from sdjax.networks.table import param_shapes
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.program import UNVOUCHED, export_program
from sdjax.tasks.request import check
from sdjax.training.diffusion import diffusion_loss, on_text
from sdjax.training.loop import build, state_shapes
from sdjax.training.options import TrainOptions
from sdjax.types import Batch
from tests.tiny import Letters

CUDNN, PALLAS = "__cudnn$fmhaSoftmax", "tpu_custom_call"
OURS = {CUDNN, CUDNN + "Backward", PALLAS}


@pytest.fixture(autouse=True)
def a_cudnn(monkeypatch):
    """cuDNN is absent here: JAX is told a version."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    monkeypatch.setattr(checks, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))


def calls(exported) -> set[str]:
    return set(re.findall(r"custom_call @([\w$]+)", exported.mlir_module()))


def holds(exported, *sides) -> set[str]:
    """Its arrays that have these sides last."""
    return set(re.findall(rf"tensor<[0-9x]*\b{'x'.join(map(str, sides))}x[a-z]+\d+>", exported.mlir_module()))


def transposed(exported) -> set[str]:
    """The shapes of all arrays whose axes are put in another order."""
    return set(re.findall(r"stablehlo\.transpose .* : \(tensor<([0-9x]+)x[a-z]+\d+>\)", exported.mlir_module()))


def test_text_to_image_at_512_pixels():
    """bfloat16, guided: the UNet on batches of 2."""
    shapes = {part: param_shapes(getattr(SD15, part)) for part in ("text", "unet", "vae")}
    sd = StableDiffusion(SD15, shapes, Letters(), jnp.dtype("bfloat16"))
    programs, _ = export_program(sd, check(SD15, "cat", TaskOptions(steps=20)), ("cuda", "tpu"))
    assert calls(programs["cuda"]) & OURS == {CUDNN} and calls(programs["tpu"]) & OURS == {PALLAS}
    assert programs["tpu"].out_avals[0].shape == (1, 512, 512, 3)
    heads = {"8", "40"}, {"8", "80"}, {"8", "160"}, {"12", "64"}, {"1", "512"}  # UNet, text tower, VAE; their width
    for program in programs.values():
        assert not holds(program, 4096, 4096) and not holds(program, 1024, 1024)  # no layer's logits
        shapes = [shape.split("x") for shape in transposed(program)]
        assert shapes and all(len(sides) >= 4 and any(head <= set(sides) for head in heads) for sides in shapes), shapes


SHALLOW = replace(SD15, unet=replace(SD15.unet, channels=(320, 640), blocks=1, attention=(True, True), heads=(8, 8)))


@pytest.mark.parametrize("config", [SHALLOW, pytest.param(SD15, marks=pytest.mark.slow)], ids=["shallow", "whole"])
def test_training_step_at_512_pixels(config):
    """bfloat16, AdamW, EMA."""
    options, layout = TrainOptions(Path(), Path(), batch_size=8), FsdpLayout(1, jax.devices()[:1])
    null = np.zeros((config.text.length, config.text.width), np.float32)
    make, step = build(options, diffusion_loss(config, on_text(null), "bfloat16", False, 0.1), layout)
    state = state_shapes(make, lambda seed: initial_params(config, "unet", seed))
    shape = jax.ShapeDtypeStruct
    batch = Batch(shape((8, 64, 64, 8), np.float16), shape((8, *null.shape), np.float16), shape((8,), np.uint32))
    checks = [export.DisabledSafetyCheck.custom_call(name + end) for name in UNVOUCHED for end in ("", "Backward")]
    step = layout.step(step, state)
    for platform, kernels in (("cuda", {CUDNN, CUDNN + "Backward"}), ("tpu", {PALLAS})):
        exported = export.export(step, platforms=[platform], disabled_checks=checks)(
            state, (batch, shape((8,), np.float32)), shape((), np.uint32)
        )
        assert calls(exported) & OURS == kernels
        assert not holds(exported, 4096, 4096) and not holds(exported, 1024, 1024)


@pytest.mark.parametrize("batch", [2, 16])
def test_image_prompts_of_few_tokens(batch):
    """4 tokens, and 16, behind the text's 77, in bfloat16."""
    unet, shape = SHALLOW.unet, jax.ShapeDtypeStruct
    pair = lambda tokens, width: (shape((batch, tokens, width), jnp.bfloat16),) * 2
    context = {name: pair(77, width) + pair(4, width) + pair(16, width) for name, width in attentions_of(unet)}
    x = shape((batch, 64, 64, 4), jnp.float32)
    call = jax.jit(lambda params, x, t, context: unet_output(params, x, t, context, unet, jnp.bfloat16))
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in UNVOUCHED]
    for platform, kernel in (("cuda", CUDNN), ("tpu", PALLAS)):
        exported = export.export(call, platforms=[platform], disabled_checks=checks)(
            param_shapes(unet), x, shape((batch,), jnp.float32), context
        )
        assert calls(exported) & OURS == {kernel} and exported.out_avals[0].shape == x.shape
