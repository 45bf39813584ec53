"""The pictures of a class that a model draws before it is trained on something new of that class (DreamBooth)."""

import json
import sys
from pathlib import Path
from typing import Any

import sdjax
from sdjax.errors import SdjaxError
from sdjax.files import written_whole
from sdjax.image.png import save_png
from sdjax.model.value import StableDiffusion, digest
from sdjax.training.run import hold

AT_ONCE = 8  # pictures


def read_settings(path: Path) -> dict[str, Any]:
    """Returns what the pictures beside a prior.json are of. SdjaxError: it cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return found | {"images": found["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise SdjaxError(f"prior_prompt: {path} is no settings of its pictures; move {path.parent} away") from None


def draw_prior(sd: StableDiffusion, folder: Path, prompt: str, count: int, seed: int, size: int) -> Path:
    """Draws `count` pictures of a prompt into `folder`, with metadata.jsonl, and returns the folder.

    Picture i is that of seed + i, and is written whole: a run that was killed goes on behind the last one.
    SdjaxError: the folder has pictures of something else.
    """
    hold(folder.parent)
    asked = {"prompt": prompt, "images": count, "seed": seed, "size": size, "model": digest(sd.params)}
    settings = folder / "prior.json"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.is_file() and (known := read_settings(settings)) != asked | {"images": known["images"]}:
        changed = ", ".join(name for name in asked if name != "images" and known.get(name) != asked[name])
        raise SdjaxError(f"prior_prompt {prompt!r}: {folder} has pictures of another {changed}; move it away")
    with written_whole(settings) as scratch:
        scratch.write_text(json.dumps(asked, indent=2) + "\n", "utf-8")
    names = [f"{i:05d}.png" for i in range(count)]
    todo = [i for i, name in enumerate(names) if not (folder / name).is_file()]
    from tqdm import tqdm

    with tqdm(total=count, initial=count - len(todo), desc="class pictures", file=sys.stderr) as bar:
        for first in range(0, count, AT_ONCE):
            own = [i for i in todo if first <= i < first + AT_ONCE]
            if not own:
                continue
            many = {"num_images": min(AT_ONCE, count - first), "seed": seed + first}  # the same batch after a kill
            images = sdjax.txt2img(sd, prompt, steps=20, height=size, width=size, syntax="plain", **many)
            for i in own:
                save_png(images[i - first], folder / names[i])
            bar.update(len(own))
    with written_whole(folder / "metadata.jsonl") as scratch:
        lines = [json.dumps({"file_name": name, "text": prompt}) + "\n" for name in names]
        scratch.write_text("".join(lines), "utf-8")
    return folder
