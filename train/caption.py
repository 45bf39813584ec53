"""Captions a folder of pictures without text: each picture gets the phrase that a CLIP model ranks first.

    python train/caption.py --data pictures --phrases phrases.txt

writes pictures/metadata.jsonl, which the training scripts read: one {"file_name", "text", "score"} a line, in the order
of the names. The score is the cosine similarity of picture and phrase (arXiv 2103.00020, section 3.1.2). Pictures that
cannot be read are named on standard error and left out.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdjax.commands import command_line as cli
from sdjax.errors import SdjaxError
from sdjax.files import written_whole


@dataclass(frozen=True)
class Options:
    data: Path
    """Folder of pictures; folders in it count."""
    phrases: Path
    """UTF-8, a phrase a line; blank lines are skipped."""
    model: str = "emoji"
    """Whose text tower reads the phrases: "emoji", or a folder."""
    clip: Path | None = None
    """Folder of the image tower that train/train_clip.py exported with it; MODEL/clip, or the bundled one. Or of a
    whole CLIP as transformers saves it, whose own text tower then reads the phrases."""
    batch_size: int = 64
    overwrite: bool = False
    """Replace a metadata.jsonl that is there."""


def find_pictures(root: Path) -> list[Path]:
    """Returns every file in the folder, and in folders in it, whose suffix is a picture's, sorted. SdjaxError: none."""
    from sdjax.data.picture import SUFFIXES

    if not root.is_dir():
        raise SdjaxError(f"--data {root}: no such folder")
    found = sorted(path for path in root.rglob("*") if path.suffix[1:].lower() in SUFFIXES and path.is_file())
    if not found:
        raise SdjaxError(f"--data {root}: no pictures there")
    return found


def main(options: Options) -> None:
    """Caption a folder of pictures with the phrases that CLIP ranks first."""
    from sdjax.files import read_prompts

    table = options.data / "metadata.jsonl"
    if table.exists() and not options.overwrite:
        raise SdjaxError(f"{table}: is there already; --overwrite replaces it")
    if options.batch_size < 1:
        raise SdjaxError(f"--batch-size {options.batch_size}: at least 1")
    paths, phrases = find_pictures(options.data), read_prompts(options.phrases)
    read, rank = make_ranking(options, phrases)

    kept, progress = [], cli.Progress("picture")
    for start in range(0, len(paths), options.batch_size):
        pictures, names = [], []
        for path in paths[start : start + options.batch_size]:
            name = path.relative_to(options.data).as_posix()
            try:
                name.encode()
                pictures.append(read(path))
                names.append(name)
            except UnicodeEncodeError:
                print(f"left out: {str(path)!r}: its name is not UTF-8, give it another", file=sys.stderr)
            except SdjaxError as error:
                print(f"left out: {error}", file=sys.stderr)
        if pictures:
            kept += [
                {"file_name": name, "text": phrases[best], "score": round(float(score), 4)}
                for name, best, score in zip(names, *rank(np.stack(pictures)), strict=True)
            ]
        progress(min(start + options.batch_size, len(paths)), len(paths))
    if not kept:
        raise SdjaxError(f"--data {options.data}: none of its {len(paths)} pictures can be read")
    with written_whole(table) as scratch:
        scratch.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
    print(table)


def make_ranking(options: Options, phrases: list[str]):
    """Returns two functions: read and rank.

    read(path) returns a picture as the image tower takes it, [size, size, 3]. rank(pictures [B, size, size, 3]) returns
    the index of the best phrase for each, [B], and its cosine similarity [B]. SdjaxError: the towers do not fit.
    """
    import sdjax
    from sdjax.conditioning.clip import embed_phrases, image_embedding
    from sdjax.data.picture import load_picture, load_square, to_pixels
    from sdjax.families.sd import EMOJI
    from sdjax.image.pixels import clip_pixels
    from sdjax.weights.clip import load_clip_text

    bundled = Path(sdjax.__file__).parent / "pretrained" / "emoji" / "clip"
    folder = options.clip or (bundled if options.model == "emoji" else Path(options.model) / "clip")
    config, params = sdjax.load_clip(folder)
    if text := load_clip_text(folder):
        sd = sdjax.StableDiffusion(replace(EMOJI, text=text[0]), {"text": text[1]}, text[2])
        read = lambda path: clip_pixels(load_picture(path), config.size)
    else:  # train/train_clip.py trains its tower on pixels in [-1, 1]
        sd, read = sdjax.load(options.model), lambda path: to_pixels(load_square(path, config.size))
    if sd.config.text.width != len(params["text_projection"]):
        raise SdjaxError(
            f"{folder}: belongs to a text tower {len(params['text_projection'])} wide, that of --model "
            f"{options.model} is {sd.config.text.width} wide"
        )
    words = np.asarray(embed_phrases(sd, phrases, params["text_projection"]))

    def rank(pictures):
        image = np.asarray(image_embedding(params["vision"], pictures, config))
        cosine = image / np.linalg.norm(image, axis=1, keepdims=True) @ words.T
        return cosine.argmax(1), cosine.max(1)

    return read, rank


if __name__ == "__main__":
    cli.run(main, Options)
