"""The safety checker decides as diffusers' torch one, on a narrow random tower, from the picture on."""

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker  # noqa: E402
from transformers import CLIPConfig  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

import sdjax  # noqa: E402
from sdjax.image.pixels import clip_pixels  # noqa: E402
from sdjax.networks.clip.fields import FIELDS  # noqa: E402
from tests.narrow import NARROW_VISION  # noqa: E402
from tests.parity.peers import perturb  # noqa: E402

pytestmark = pytest.mark.parity


def images(count):
    """Smooth, of several sizes, different enough for the tower."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        yield small.resize(rng.integers(16, 60, 2).tolist(), Image.Resampling.BICUBIC)


def test_decisions(tmp_path):
    torch.manual_seed(0)
    vision = {theirs: getattr(NARROW_VISION, ours) for ours, theirs in FIELDS.items()}
    theirs = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    perturb(theirs).float()
    pictures = list(images(60))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    inputs = torch.cat([processor(picture, return_tensors="pt").pixel_values for picture in pictures])
    with torch.no_grad():
        embedding = theirs.visual_projection(theirs.vision_model(inputs)[1])
        embedding = embedding / embedding.norm(dim=1, keepdim=True)
        spread = embedding - embedding.mean(0)
        for name, count in (("concept_embeds", 17), ("special_care_embeds", 3)):
            directions = torch.randn(count, 16) @ torch.linalg.qr(spread.T @ spread)[0].T
            getattr(theirs, name).copy_(directions)
            cosines = embedding @ (directions / directions.norm(dim=1, keepdim=True)).T
            getattr(theirs, f"{name}_weights").copy_(cosines.quantile(0.97 if count == 17 else 0.7, dim=0))
    theirs.save_pretrained(tmp_path / "safety_checker")
    checker = sdjax.load_safety_checker(tmp_path)

    for picture, want in zip(pictures, inputs, strict=True):
        np.testing.assert_allclose(clip_pixels(picture, 16), want.permute(1, 2, 0), atol=1e-6)
    _, flags = theirs(inputs, [np.zeros(1) for _ in pictures])
    np.testing.assert_array_equal(sdjax.check_safety(checker, pictures), flags)
    assert 10 < sum(flags) < 50
    careless = checker._replace(special_thresholds=np.full(3, 2, np.float32))
    assert (sdjax.check_safety(careless, pictures) != flags).any(), "the special concepts change nothing"
