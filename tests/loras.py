"""LoRA files for tests: random factors of every kind, under every spelling, and what they stand for in float64."""

import numpy as np
from flax.traverse_util import flatten_dict

from sdjax.adapters.lora_files import file_shape
from sdjax.families.table import family_of
from sdjax.networks.table import make_rows
from sdjax.weights.convert import operation_of

KINDS = ("lora", "locon", "loha", "loha-t", "lokr", "lokr-a", "lokr-ab", "lokr-t", "dora", "dora-in", "diff", "diff_b")
RANK, ALPHA = 3, 1.5


class Site:
    """One layer of a model: its names in files, and where its weight lies."""

    def __init__(self, config, part, row):
        self.config, self.part, self.row = config, part, row
        self.name = row.diffusers.rpartition(".")[0]
        prefix = family_of(config).parts[part].prefix
        self.single = row.compvis and row.compvis.removeprefix(f"{prefix}.").rpartition(".")[0]
        self.shape = file_shape(config, part, row)
        self.path = (part, *row.path)
        self.bias = (part, *row.path[:-1], "bias")


def sites(config, parts=("unet", "text", "text_2")):
    """All layers with a kernel."""
    found = []
    for part, place in family_of(config).parts.items():
        if part in parts:
            rows = make_rows(getattr(config, part), prefix=place.prefix)
            found += [Site(config, part, row) for row in rows if row.path[-1] == "kernel"]
    return found


def factors(kind: str, shape: tuple[int, ...], rng, r: int = RANK, spread: float = 0.3) -> dict[str, np.ndarray]:
    """Random float32 factors of one layer by their endings, kohya's and LyCORIS'."""
    draw = lambda *sides: (rng.normal(size=sides) * spread).astype(np.float32)
    out, wide, *k = shape
    ones, area = [1] * len(k), int(np.prod(k))
    alpha = {"alpha": np.array(ALPHA, np.float32)}
    low = {"lora_down.weight": draw(r, wide, *k), "lora_up.weight": draw(out, r, *ones)} | alpha
    if kind == "lora":
        return low
    if kind == "locon" and k:
        middle = {"lora_mid.weight": draw(r, r, *k)}
        return alpha | middle | {"lora_down.weight": draw(r, wide, *ones), "lora_up.weight": draw(out, r, *ones)}
    if kind == "locon":
        return low
    if kind == "dora":
        return low | {"dora_scale": 1 + draw(out, 1, *ones)}
    if kind == "dora-in":
        return low | {"dora_scale": 1 + draw(1, wide, *ones)}
    if kind == "diff":
        return {"diff": draw(*shape)}
    if kind == "diff_b":
        return {"diff_b": draw(out)}
    if kind == "loha-t" and k:
        pairs = [
            {f"hada_t{i}": draw(r, r, *k), f"hada_w{i}_a": draw(r, out), f"hada_w{i}_b": draw(r, wide)} for i in (1, 2)
        ]
        return alpha | pairs[0] | pairs[1]
    if kind in ("loha", "loha-t"):
        return alpha | {
            f"hada_w{i}_{half}": draw(*sides)
            for i in (1, 2)
            for half, sides in (("a", (out, r)), ("b", (r, wide * area)))
        }
    a, c = (2 if side % 2 == 0 else 1 for side in (out, wide))
    b, d = out // a, wide // c
    one = {"lokr_w1": draw(a, c)} if kind != "lokr-ab" else {"lokr_w1_a": draw(a, r), "lokr_w1_b": draw(r, c)}
    if kind == "lokr":
        return alpha | one | {"lokr_w2": draw(b, d, *k)}
    if kind == "lokr-t" and k:
        return alpha | one | {"lokr_t2": draw(r, r, *k), "lokr_w2_a": draw(r, b), "lokr_w2_b": draw(r, d)}
    return alpha | one | {"lokr_w2_a": draw(b, r), "lokr_w2_b": draw(r, d * area)}


def delta(f, shape, mistake: str = "") -> np.ndarray:
    """The change D of a weight [out, in, ...] in float64, in files' layout, by the formulas of the papers.

    mistake: one that has to be noticed.
    """
    f = {name: np.asarray(value, np.float64) for name, value in f.items()}
    out, wide, *k = shape
    alpha = float(f.get("alpha", 0)) or None
    if mistake == "alpha ignored":
        alpha = None
    flat = lambda value: value.reshape(len(value), -1)
    if "diff" in f:
        return f["diff"].reshape(shape)
    if "lora_down.weight" in f:
        up, down = flat(f["lora_up.weight"]), f["lora_down.weight"]
        r = len(down)
        if "lora_mid.weight" in f and mistake != "mid ignored":
            found = np.einsum("mnkl,im,nj->ijkl", f["lora_mid.weight"], up, flat(down))
        elif "lora_mid.weight" in f:
            found = np.broadcast_to((up @ flat(down))[..., None, None], shape)
        elif mistake == "flattened wrong" and k:
            found = (up @ down.transpose(0, 2, 3, 1).reshape(r, -1)).reshape(shape)
        else:
            found = np.einsum("ir,rj...->ij...", up, down)
    elif "hada_w1_a" in f:
        r, halves = len(f["hada_w1_b"]), []
        for i in (1, 2):
            a, b = f[f"hada_w{i}_a"], f[f"hada_w{i}_b"]
            if f"hada_t{i}" in f:
                halves.append(np.einsum("pqkl,pi,qj->ijkl", f[f"hada_t{i}"], a, b))
            else:
                halves.append((a @ b).reshape(shape))
        found = halves[0] * halves[1]
    else:
        one = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
        b, d = out // one.shape[0], wide // one.shape[1]
        if "lokr_w2" in f:
            two = f["lokr_w2"]
        elif "lokr_t2" in f:
            two = np.einsum("pqkl,pi,qj->ijkl", f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])
        else:
            two = (f["lokr_w2_a"] @ f["lokr_w2_b"]).reshape(b, d, *k)
        r = next((len(f[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in f), None)
        if r is None:
            alpha, r = None, 1
        found = np.kron(one.reshape(*one.shape, *[1] * len(k)), two)
        if mistake == "alpha twice" and alpha:
            found = found * alpha / r
    return found.reshape(shape) * (alpha / r if alpha else 1)


def merged(base: np.ndarray, f, weight: float, mistake: str = "") -> np.ndarray:
    """W + w (V' - W) of a weight in files' layout, float64."""
    base = np.asarray(base, np.float64)
    shape = base.shape
    if "dora_scale" not in f:
        return base + weight * delta(f, shape, mistake)
    value, m = base + delta(f, shape, mistake), np.asarray(f["dora_scale"], np.float64)
    per_output = m.shape[0] == shape[0] and (m.ndim == 1 or m.shape[1] == 1)
    if mistake == "other axis" or mistake == "whole norm":
        per_output = not per_output
    axes = tuple(axis for axis in range(len(shape)) if axis != (0 if per_output else 1))
    norm = np.sqrt((value**2).sum(axis=axes, keepdims=True))
    m = m.reshape(m.shape[:2] + (1,) * (len(shape) - 2))
    return base + weight * (value * m / norm - base)


def expected(sd, loras, mistake: str = ""):
    """All parameters after [(files' factors by site, weight, text_weight)] by their paths, float64.

    The LoRAs add up, each from the model's own weights.
    """
    found = {path: np.asarray(leaf, np.float64) for path, leaf in flatten_dict(sd.params).items()}
    own = dict(found)
    for by_site, weight, text_weight in loras:
        for site, f in by_site.items():
            w = weight if site.part == "unet" else text_weight
            if "diff_b" in f:
                found[site.bias] = found[site.bias] + w * f["diff_b"].reshape(-1)
                f = {name: value for name, value in f.items() if name != "diff_b"}
            if not f:
                continue
            ours, theirs, _ = operation_of(site.row.operation)
            base = theirs(own[site.path])
            found[site.path] = found[site.path] + ours(merged(base, f, w, mistake) - base)
    return found
