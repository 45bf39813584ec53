"""LoRA files for tests of sdjax.add_lora: models of every family, and every spelling of a file's names."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import sdjax
from sdjax.families.table import family_of
from tests.kinds import REFINER, SDXL, XL
from tests.loras import expected, factors, sites
from tests.narrow import LIKE_SD15, LIKE_SD21, random_params

MODELS = {"sd1": LIKE_SD15, "sd2": LIKE_SD21, "sdxl": XL, "sdxl-2": SDXL, "refiner": REFINER}


def model(config, dtype=np.float32):
    parts = {part: random_params(getattr(config, part), i) for i, part in enumerate(family_of(config).parts)}
    parts = jax.tree.map(lambda leaf: leaf.astype(dtype), parts)
    return sdjax.StableDiffusion(config, parts, None)


def text_prefix(site, one="lora_te_", two="lora_te2_"):
    return two if family_of(site.config).parts[site.part].folder.endswith("_2") else one


def kohya(site):
    prefix = "lora_unet_" if site.part == "unet" else text_prefix(site)
    return prefix + site.name.replace(".", "_")


def stability(site):
    return "lora_unet_" + site.single.replace(".", "_") if site.part == "unet" else kohya(site)


def draw(config, kind="lora", seed=0, parts=("unet", "text", "text_2"), where=lambda site: True):
    rng = np.random.default_rng(seed)
    found = {site: factors(kind, site.shape, rng) for site in sites(config, parts) if where(site)}
    if kind == "diff_b":
        found = {site: f for site, f in found.items() if not site.name.endswith((".to_q", ".to_k", ".to_v"))}
        found = {site: f for site, f in found.items() if "text_projection" not in site.name}
    return found


def named(by_site, name=kohya, rename=lambda ending: ending):
    return {f"{name(site)}.{rename(end)}": value for site, f in by_site.items() for end, value in f.items()}


def write(tmp_path, tensors, name="a.safetensors", metadata=None):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    return path


def check(sd, found, loras, tolerance=5e-6, mistake=""):
    """All parameters are those of the formulas, of the same shapes and dtypes; untouched ones are the same arrays."""
    wanted, own, before = expected(sd, loras, mistake), flatten_dict(found.params), flatten_dict(sd.params)
    assert own.keys() == before.keys()
    worst = 0.0
    for path, value in own.items():
        assert (value.shape, value.dtype) == (before[path].shape, before[path].dtype)
        if np.array_equal(wanted[path], np.asarray(before[path], np.float64)):
            assert value is before[path], path
        worst = max(worst, np.abs(np.asarray(value, np.float64) - wanted[path]).max())
    assert worst < tolerance, worst
    return worst


# ---- names


OLDEST = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
OLDEST_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def oldest(prefix):
    """diffusers' names of 2023, of attentions alone."""

    def name(site):
        for table, middle in ((OLDEST, "processor."), (OLDEST_TEXT, "")):
            for now, then in table.items():
                if site.name.endswith(f".{now}") and "attn" in site.name:
                    before = site.name.removesuffix(now)
                    folder = "" if not prefix else "unet." if site.part == "unet" else text_prefix(site, *FOLDERS)
                    return f"{folder}{before}{middle}{then}_lora"
        return None

    return name


FOLDERS = "text_encoder.", "text_encoder_2."
folder = lambda site: "unet." if site.part == "unet" else text_prefix(site, *FOLDERS)
down_up = lambda start: lambda end: end.replace("lora_", start)
a_b = lambda end: end.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
LAYOUTS = {
    "kohya": (kohya, None),
    "kohya te1": (lambda s: kohya(s).replace("lora_te_", "lora_te1_"), None),
    "stability": (stability, None),
    "lycoris": (lambda s: kohya(s).replace("lora_unet_", "lycoris_"), None),
    "diffusers": (lambda s: folder(s) + s.name, a_b),
    "diffusers lora.down": (lambda s: folder(s) + s.name, down_up("lora.")),
    "diffusers lora_linear_layer": (lambda s: folder(s) + s.name, down_up("lora_linear_layer.")),
    "diffusers without a prefix": (lambda s: (folder(s) if s.part != "unet" else "") + s.name, a_b),
    "diffusers 2023": (oldest(True), down_up("")),
    "peft": (lambda s: "base_model.model." + s.name, a_b),
    "peft raw": (lambda s: "base_model.model." + s.name, lambda end: a_b(end).replace(".weight", ".default.weight")),
    "comfy": (lambda s: "diffusion_model." + s.single if s.part == "unet" else folder(s) + s.name, a_b),
    "compvis": (lambda s: "model.diffusion_model." + s.single if s.part == "unet" else folder(s) + s.name, a_b),
    "text without text_model": (lambda s: folder(s) + s.name.removeprefix("text_model."), a_b),
}
