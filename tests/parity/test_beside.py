"""Models that take a depth map or a small picture beside x, against diffusers: folders of ours, both ways."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.families.table import family_of  # noqa: E402
from sdjax.image import bicubic  # noqa: E402
from sdjax.networks.bert.config import BertTextConfig  # noqa: E402
from sdjax.text.bpe import train_bpe  # noqa: E402
from tests.narrow import LIKE_SD21, random_params  # noqa: E402
from tests.parity.test_ldm_pipeline import FACES, same  # noqa: E402
from tests.text.test_tokenizer import captions  # noqa: E402

pytestmark = pytest.mark.parity

PROMPTS = ["a red apple on the left", "a noto emoji of a hedgehog"]
DEPTH = replace(LIKE_SD21, name="depth", unet=replace(LIKE_SD21.unet, in_channels=5))
X4 = replace(
    LIKE_SD21,
    name="x4",
    vae=replace(LIKE_SD21.vae, channels=(8, 16, 24), scaling=0.08333),  # diffusers knows no other
    unet=replace(
        LIKE_SD21.unet,
        in_channels=7,
        attention=(False, True, True, True),
        self_attention=(False, False, False, True),
        labels=1000,
    ),
    size=64,
)
SR = replace(FACES, name="sr", unet=replace(FACES.unet, in_channels=6))
RNG = np.random.default_rng(0)


def saved(config, folder):
    """The model in a folder that we wrote."""
    parts = {part: random_params(getattr(config, part)) for part in family_of(config).parts}
    tokenizer = train_bpe(captions(), 580, folder / "tokenizer") if config.text else None
    sdjax.save(sdjax.StableDiffusion(config, parts, tokenizer), folder / "ours")
    return folder / "ours"


def pipeline(kind, path, **none):
    found = getattr(diffusers, kind).from_pretrained(path, **none)
    found.set_progress_bar_config(disable=True)
    return found


nchw = lambda noise: torch.tensor(noise.transpose(0, 3, 1, 2).copy())


def test_depth(tmp_path):
    path = saved(DEPTH, tmp_path)
    pipe = pipeline("StableDiffusionDepth2ImgPipeline", path, depth_estimator=None, feature_extractor=None)
    depth = RNG.uniform(3, 40, (2, 50, 70)).astype(np.float32)
    pixels = RNG.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    noise = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)
    images = pipe(
        PROMPTS,
        image=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        depth_map=torch.tensor(depth),
        strength=1.0,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=(generator := torch.manual_seed(7)),
    ).images
    assert generator is not None
    torch.manual_seed(7)
    drawn = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(7)).numpy().transpose(0, 2, 3, 1)
    assert noise.shape == drawn.shape and len(images) == 2
    sd = sdjax.load(path)
    assert sd.config == replace(DEPTH, name="ours") and family_of(sd.config).concat == "depth"
    cond = sdjax.encode_prompt(sd, PROMPTS) | sdjax.encode_depth(sd, depth, 64, 64)
    want = torch.nn.functional.interpolate(torch.tensor(depth)[:, None], (8, 8), mode="bicubic", align_corners=False)
    low, high = torch.amin(want, [1, 2, 3], True), torch.amax(want, [1, 2, 3], True)
    want = (2 * (want - low) / (high - low) - 1).numpy()[:, 0]
    np.testing.assert_allclose(cond.concat[..., 0], want, atol=2e-5)
    pipe.save_pretrained(tmp_path / "theirs")
    assert sdjax.load(tmp_path / "theirs").config == replace(DEPTH, name="theirs")


def test_the_unets_of_depth_and_x4(tmp_path):
    for config, kind, none in (
        (DEPTH, "StableDiffusionDepth2ImgPipeline", {"depth_estimator": None, "feature_extractor": None}),
        (X4, "StableDiffusionUpscalePipeline", {}),
    ):
        path = saved(config, tmp_path / config.name)
        pipe, sd = pipeline(kind, path, **none), sdjax.load(path)
        x = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)
        concat = RNG.standard_normal((2, 8, 8, config.unet.in_channels - 4)).astype(np.float32)
        cond = sdjax.encode_prompt(sd, PROMPTS)._replace(concat=concat)
        labels = None
        if config.unet.labels:
            cond, labels = cond._replace(vector=np.float32([[20], [350]])), torch.tensor([20, 350])
        ours = sdjax.predict(sd, x, 501.0, cond)
        unet = pipe.unet.double()
        theirs = unet(
            nchw(np.concatenate([x, concat], -1)).double(),
            501,
            torch.tensor(np.asarray(cond.context)).double(),
            class_labels=labels,
        ).sample
        theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 5e-6, config.name


def test_x4(tmp_path):
    path = saved(X4, tmp_path)
    pipe, sd = pipeline("StableDiffusionUpscalePipeline", path), sdjax.load(path)
    assert sd.config == replace(X4, name="ours")
    small = RNG.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    noise = RNG.standard_normal((2, 16, 24, 4)).astype(np.float32)
    cond = sdjax.encode_lowres(sd, small, noise_level=20, seed=5)
    abar = pipe.low_res_scheduler.alphas_cumprod[20].item()
    eps = (np.asarray(cond.concat) - np.sqrt(abar) * small) / np.sqrt(1 - abar)
    assert abs(eps.std() - 1) < 0.05 and abs(np.sqrt(1 - abar) - 0.052) < 1e-3

    drawn = iter([nchw(eps.astype(np.float32))])
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale.randn_tensor"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, lambda *_, **__: next(drawn))
        theirs = pipe(
            PROMPTS,
            image=nchw(small),
            noise_level=20,
            num_inference_steps=10,
            guidance_scale=5.0,
            latents=nchw(noise),
        ).images
    ours = sdjax.upscale(sd, PROMPTS, small, 20, steps=10, guidance_scale=5.0, seed=5, latents=noise)
    same(ours, theirs)
    assert ours[0].size == (96, 64)
    pipe.save_pretrained(tmp_path / "theirs")
    assert sdjax.load(tmp_path / "theirs").config == replace(X4, name="theirs")


def test_sr(tmp_path):
    path = saved(SR, tmp_path)
    pipe, sd = pipeline("LDMSuperResolutionPipeline", path), sdjax.load(path)
    small = RNG.uniform(-1, 1, (1, 8, 12, 3)).astype(np.float32)
    noise = torch.randn(1, 3, 8, 12, generator=torch.manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    theirs = pipe(nchw(small), num_inference_steps=10, generator=torch.manual_seed(3)).images
    same(sdjax.upscale(sd, None, small, steps=10, latents=noise), theirs)


def test_bicubic_is_torch_s():
    images = RNG.normal(size=(2, 13, 22))
    for size in ((4, 5), (13, 22), (30, 17)):
        want = torch.nn.functional.interpolate(torch.tensor(images)[:, None], size, mode="bicubic")[:, 0].numpy()
        np.testing.assert_allclose(bicubic.resize(images, *size), want, atol=1e-5)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghij")]
TEXT = replace(
    FACES,
    name="text",
    text=BertTextConfig(len(WORDS), 12, 16, 2, 2, 4, bos_token=2, eos_token=3),
    unet=replace(FACES.unet, cross=True, context_dim=16),
    guidance_scale=5.0,
)


def test_text_as_word_pieces(tmp_path, monkeypatch):
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    parts = {part: random_params(getattr(TEXT, part)) for part in family_of(TEXT).parts}
    sdjax.save(sdjax.StableDiffusion(TEXT, parts, tokenizer), tmp_path / "ours")
    pipe, sd = pipeline("LDMTextToImagePipeline", tmp_path / "ours"), sdjax.load(tmp_path / "ours")
    assert sd.config == replace(TEXT, name="ours") and sd.config.guidance_scale == 5.0
    prompts = ["a b abc", "z"]
    noise = RNG.standard_normal((2, 8, 8, 3)).astype(np.float32)
    tokens = pipe.tokenizer(prompts, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    np.testing.assert_array_equal(sdjax.tokenize(sd, prompts), tokens)
    states = pipe.bert(tokens)[0].detach().numpy()
    got = sdjax.encode_prompt(sd, prompts).context
    assert np.abs(got - states).max() / np.abs(states).max() < 5e-6
    monkeypatch.setattr(pipe.tokenizer, "model_max_length", 12)
    call = pipe.tokenizer.__class__.__call__
    monkeypatch.setattr(pipe.tokenizer.__class__, "__call__", lambda *a, **k: call(*a, **k | {"max_length": 12}))
    theirs = pipe(prompts, num_inference_steps=10, guidance_scale=5.0, latents=nchw(noise), height=64, width=64).images
    same(sdjax.txt2img(sd, prompts, steps=10, latents=noise), theirs)
