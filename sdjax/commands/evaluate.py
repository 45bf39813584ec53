"""Measures how well a model trained on the emoji data draws what its prompts ask for. Prints one Markdown table.

    python train/prepare_emoji.py --out data/emoji
    python sample/evaluate.py --data data/emoji

For each prompt, as "a 3d render of a red apple on a yellow background", it draws one picture and computes:
background  Is the median colour of the picture's border nearest (CIE Lab) to a shade of the named colour?
thing       The picture is compared with the data's own drawings of all things, each in the asked style on the asked
            background at three sizes. Is the asked thing the nearest, or among the five nearest? Distances are
            Euclidean, over pixels averaged to 32 x 32.
style       The same with the asked thing's drawings in all three styles: is that in the asked style the nearest?
clip        Among the captions of all prompts of the row, is the picture's own the nearest to it, or among the five
            nearest, in CLIP's space?
These columns give the shares of pictures for which the answer is yes, in percent.
edges       How sharp is it? The strength of a picture's edges is what a Gaussian blur of one pixel takes from the
            luminance, the mean over the tenth of the pixels from which it takes most. Drawn over true picture of one
            prompt, the median over the prompts: below 1 is softer than the artist's edges, above 1 harder.
The row "true pictures" judges the data's own pictures, the ceiling; the row "shuffled pictures" judges the pictures of
other prompts, the floor. A line below the table says how well the VAE gives true pictures of held-out combinations
again: the mean PSNR of decode(mean of encode(picture)).
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

FILLS = (0.84, 0.89, 0.94)  # a drawing's longer side as a share of the picture's side
BORDER = 2  # width in pixels
SIDE = 32  # of the pictures that are compared
HELD = ("held-out thing x style", "held-out thing x background")


@dataclass(frozen=True)
class Options:
    data: Path
    """Folder that train/prepare_emoji.py wrote."""
    model: str = "emoji"
    config: str | None = None
    """The name of a single file's configuration, as cin256-v2, where its tensors do not tell."""
    unet: Path | None = None
    """A file, or a folder, whose UNet takes the place of the model's."""
    vae: Path | None = None
    """The same for the VAE."""
    clip: Path | None = None
    """CLIP folder of train/train_clip.py; the bundled one when not given."""
    prompts: int = 240
    """Prompts of combinations that were trained on."""
    held_out: int = 120
    """Prompts of each kind of held-out combination."""
    steps: int = 20
    guidance_scale: float = 4.0
    sampler: str = "ddim"
    seed: int = 0
    size: int | None = None
    """Pixels a side at which pictures are judged, others are resized to it; the model's own when not given."""
    sheet: Path | None = None
    """Where to save a contact sheet of the first 64 pictures."""


@dataclass(frozen=True)
class Asked:
    """What one prompt asks for."""

    thing: str
    style: str
    background: str


def choose_prompts(options: Options, things: list[str], styles, backgrounds, held: dict) -> dict[str, list[Asked]]:
    """Returns the prompts of each row of the table: trained and held-out combinations, chosen by the seed.

    held: the combinations that were held out of the training data, {"thing_style", "thing_background"}.
    """
    rng = np.random.default_rng(options.seed)
    pick = lambda values: values[rng.integers(len(values))]
    no_style, no_background = (set(map(tuple, held[kind])) for kind in ("thing_style", "thing_background"))
    trained = []
    while len(trained) < options.prompts:
        asked = Asked(pick(things), pick(styles), pick(backgrounds))
        if (asked.thing, asked.style) not in no_style and (asked.thing, asked.background) not in no_background:
            trained.append(asked)
    shuffled = lambda pairs: [pairs[i] for i in rng.permutation(len(pairs))[: options.held_out]]
    by_style = [
        Asked(thing, style, pick([b for b in backgrounds if (thing, b) not in no_background]))
        for thing, style in shuffled(sorted(no_style))
    ]
    by_background = [
        Asked(thing, pick([s for s in styles if (thing, s) not in no_style]), background)
        for thing, background in shuffled(sorted(no_background))
    ]
    return {"trained": trained, HELD[0]: by_style, HELD[1]: by_background}


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..255 -> CIE L*a*b* (D65)."""
    c = np.asarray(rgb, np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear @ np.transpose(matrix) / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def border_colour(picture: np.ndarray) -> np.ndarray:
    """Returns the median colour of the outermost BORDER pixels of a picture, uint8 [H, W, 3]."""
    inner = np.zeros(picture.shape[:2], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(picture[~inner], axis=0)


def shrink(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, 32 k, 32 k, 3] -> float32 [N, 3072], averaged over k x k pixels."""
    n, by = len(pictures), pictures.shape[1] // SIDE
    return pictures.reshape(n, SIDE, by, SIDE, by, 3).mean((2, 4), dtype=np.float32).reshape(n, -1)


def edge_strength(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float64 [N]: see `edges` at the top of this file; on luminance (Rec. 601) in [0, 255]."""
    luminance = pictures.astype(np.float64) @ (0.299, 0.587, 0.114)
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(luminance, ((0, 0), (4, 4), (4, 4)), "edge")
    rows = sum(weight * padded[:, i : i + luminance.shape[1]] for i, weight in enumerate(kernel))
    blurred = sum(weight * rows[:, :, i : i + luminance.shape[2]] for i, weight in enumerate(kernel))
    taken = np.sort(np.abs(luminance - blurred).reshape(len(pictures), -1))
    return taken[:, -(taken.shape[1] // 10) :].mean(1)


def reconstruction_psnr(sd, pictures: np.ndarray) -> float:
    """Returns the mean PSNR in dB of what the VAE makes of pictures, uint8 [N, H, W, 3]."""
    import sdjax
    from sdjax.data.picture import to_pixels
    from sdjax.image.quality import psnr

    pixels = [to_pixels(pictures[i : i + 16]) for i in range(0, len(pictures), 16)]
    again = [np.clip(sdjax.decode(sd, sdjax.encode(sd, part)), -1, 1) for part in pixels]
    return float(np.concatenate([psnr(a, b) for a, b in zip(pixels, again, strict=True)]).mean())


class References:
    """The data's drawings of every thing in every style, to be put on a background at three sizes."""

    def __init__(self, folder: Path, size: int, things: list[str], slugs: list[str], styles):
        from PIL import Image

        def cutout(path: Path) -> Image.Image:
            with Image.open(path) as image:  # reads it now: else thousands of files would stay open
                return image.convert("RGBA")

        self.things, self.size = things, size
        self.cutouts = {style: [cutout(folder / style / f"{slug}.png") for slug in slugs] for style in styles}

    def on(self, colour: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Returns {style: float32 [things, sizes, features]} on a background of `colour`."""
        from prepare_emoji import compose

        def draw(cutouts):
            return np.stack([compose(cutout, colour, self.size, fill) for cutout in cutouts for fill in FILLS])

        return {
            style: shrink(draw(cutouts)).reshape(len(cutouts), len(FILLS), -1)
            for style, cutouts in self.cutouts.items()
        }


def judge(sets: dict, backgrounds: dict, references: References) -> dict[str, dict[str, float]]:
    """{row: (asked, pictures uint8)} -> {row: {metric: share}}, all but clip's; see the top of this file.

    backgrounds: {name: shades}; references stand on a background's first shade and are made once for each background.
    """
    shades = [(name, shade) for name, values in backgrounds.items() for shade in values]
    lab = rgb_to_lab(np.array([shade for _, shade in shades]))
    hits: dict[str, list[dict]] = {row: [] for row in sets}
    for background, values in backgrounds.items():
        table = references.on(tuple(values[0]))
        for row, (asked, pictures) in sets.items():
            chosen = [i for i, a in enumerate(asked) if a.background == background]
            if not chosen:
                continue
            for i, features in zip(chosen, shrink(pictures[chosen]), strict=True):
                colour = rgb_to_lab(border_colour(pictures[i]))
                number = references.things.index(asked[i].thing)
                distance = ((table[asked[i].style] - features) ** 2).sum(-1).min(1)
                rank = int((distance < distance[number]).sum())
                own = {style: ((refs[number] - features) ** 2).sum(-1).min() for style, refs in table.items()}
                hit = {
                    "background": shades[int(np.argmin(((lab - colour) ** 2).sum(-1)))][0] == background,
                    "thing top1": rank < 1,
                    "thing top5": rank < 5,
                    "style": min(own, key=own.get) == asked[i].style,
                }
                hits[row].append(hit)
    return {row: {name: float(np.mean([h[name] for h in found])) for name in found[0]} for row, found in hits.items()}


def clip_retrieval(sd, folder: Path, captions: list[str], pictures: np.ndarray) -> dict[str, float]:
    """Returns the shares of pictures whose own caption is the nearest, or among the five nearest, of `captions`."""
    from PIL import Image

    import sdjax
    from sdjax.conditioning.clip import embed_phrases, image_embedding
    from sdjax.image.pixels import pil_to_pixels

    config, params = sdjax.load_clip(folder)
    seen = [pil_to_pixels(Image.fromarray(one), (config.size, config.size)) for one in pictures]
    image = np.asarray(image_embedding(params["vision"], np.concatenate(seen), config))
    logits = image @ np.asarray(embed_phrases(sd, captions, params["text_projection"])).T
    rank = (logits > np.diagonal(logits)[:, None]).sum(1)
    return {"clip top1": float((rank < 1).mean()), "clip top5": float((rank < 5).mean())}


def main(options: Options) -> None:
    """Evaluate a model on prompts of the emoji data."""
    import jax
    from PIL import Image

    import sdjax
    from sdjax.errors import SdjaxError
    from sdjax.image.sheets import contact_sheet

    sys.path += [str(folder / "train") for folder in (Path(sdjax.__file__).parents[1], Path.cwd())]
    try:
        from prepare_emoji import STYLES, caption, compose
    except ImportError:
        raise SdjaxError("evaluate: no train/prepare_emoji.py here; start it in a checkout of the repository") from None
    if not (options.data / "held_out.json").is_file():
        raise SdjaxError(f"--data {options.data}: no held_out.json there; expected a folder of train/prepare_emoji.py")
    sd = sdjax.load(options.model, config=options.config, unet=options.unet, vae=options.vae)
    sd = replace(sd, params=jax.tree.map(lambda leaf: leaf.astype("float32"), sd.params))
    things = [json.loads(line) for line in (options.data / "things.jsonl").read_text().splitlines()]
    backgrounds = json.loads((options.data / "backgrounds.json").read_text())
    held = json.loads((options.data / "held_out.json").read_text())
    names = [thing["thing"] for thing in things]
    slugs = [thing["slug"] for thing in things]
    size = options.size or sd.config.size
    if size < SIDE or size % SIDE:
        raise SdjaxError(f"--size {size}: expected a multiple of {SIDE}, at which pictures are compared")
    references = References(options.data / "cutouts", size, names, slugs, STYLES)
    rng = np.random.default_rng(options.seed)
    clip = options.clip or Path(sdjax.__file__).parent / "pretrained" / "emoji" / "clip"

    sets, captions = {}, {}
    for row, asked in choose_prompts(options, names, list(STYLES), list(backgrounds), held).items():
        captions[row] = [caption("plain", a.thing, a.style, a.background) for a in asked]
        pictures = sdjax.txt2img(
            sd,
            captions[row],
            steps=options.steps,
            guidance_scale=options.guidance_scale,
            sampler=options.sampler,
            seed=options.seed,
        )
        resized = [picture.resize((size, size), Image.Resampling.BICUBIC) for picture in pictures]
        sets[row] = (asked, np.stack([np.asarray(picture) for picture in resized]))
    asked, pictures = sets["trained"]
    if options.sheet:
        contact_sheet([Image.fromarray(picture) for picture in pictures[:64]]).save(options.sheet)

    def draw_truly(asked: list[Asked], side: int) -> np.ndarray:
        return np.stack(
            [
                np.asarray(
                    compose(
                        references.cutouts[a.style][names.index(a.thing)],
                        backgrounds[a.background][rng.integers(3)],
                        side,
                        rng.uniform(0.82, 0.96),
                    )
                )
                for a in asked
            ]
        )

    true = {row: draw_truly(asked, size) for row, (asked, _) in sets.items()}
    edges = {row: edge_strength(pictures) / edge_strength(true[row]) for row, (_, pictures) in sets.items()}
    sets["true pictures"] = (asked, true["trained"])
    sets["shuffled pictures"] = (asked, np.roll(pictures, 1, axis=0))
    captions |= {"true pictures": captions["trained"], "shuffled pictures": captions["trained"]}

    table = judge(sets, backgrounds, references)
    for row, (_, pictures) in sets.items():
        table[row] |= clip_retrieval(sd, clip, captions[row], pictures)
    columns = list(table["trained"])
    print(f"{options.steps} steps of {options.sampler}, guidance {options.guidance_scale}, seed {options.seed}\n")
    print("| prompts | n | " + " | ".join([*columns, "edges"]) + " |\n|---|" + "---:|" * (len(columns) + 2))
    for row, values in table.items():
        sharpness = f"{np.median(edges[row]):.2f}" if row in edges else ""
        shares = "".join(f"{100 * values[name]:.1f} | " for name in columns)
        print(f"| {row} | {len(sets[row][0])} | {shares}{sharpness} |")
    held_pictures = np.concatenate(
        [draw_truly(asked, sd.config.size) for row, (asked, _) in sets.items() if row in HELD]
    )
    print(f"\nreconstruction: {reconstruction_psnr(sd, held_pictures):.2f} dB, {len(held_pictures)} held-out pictures")
