"""The image prompts of `sdjax generate`: files of IP-Adapters, image towers, and the pictures that they see."""

from pathlib import Path
from typing import Any

from sdjax.commands.saving import read_picture
from sdjax.errors import SdjaxError, prefixed

NAMES = ("image_prompt", "image_prompt_encoder", "image_prompt_image")


def check_image_prompts(options: Any) -> None:
    """SdjaxError: the numbers of adapters, image towers and pictures do not belong together; it names the flag."""
    adapters, encoders, pictures = (len(getattr(options, name)) for name in NAMES)
    if not adapters:
        for name in (*NAMES[1:], "image_prompt_scale"):
            if getattr(options, name) != getattr(type(options), name):
                raise SdjaxError(f"--{name.replace('_', '-')}: needs --image-prompt")
    elif encoders not in (1, adapters):
        raise SdjaxError(
            f"--image-prompt-encoder: given {encoders} times for {adapters} --image-prompt, one for all or one each "
            "expected"
        )
    elif not pictures or (adapters > 1 and pictures != adapters):
        want = "at least one" if adapters == 1 else "one each"
        raise SdjaxError(f"--image-prompt-image: given {pictures} times for {adapters} --image-prompt, {want} expected")


def load_image_prompts(options: Any) -> dict[str, list]:
    """Returns the argument of tasks that the options stand for; {} without image prompts.

    A single adapter sees all pictures together; of several each sees its own. Adapters with the same image tower share
    it in memory. SdjaxError: a file is no IP-Adapter, no image tower, or no picture.
    """
    if not options.image_prompt:
        return {}
    import sdjax

    count, towers, adapters = len(options.image_prompt), {}, []
    encoders = options.image_prompt_encoder * (count if len(options.image_prompt_encoder) == 1 else 1)
    pictures = [read_picture("image_prompt_image", path) for path in options.image_prompt_image]
    for source, encoder in zip(options.image_prompt, encoders, strict=True):
        with prefixed("--image-prompt "):
            adapters.append(sdjax.load_image_prompt(source, towers.get(encoder, encoder)))
        towers[encoder] = adapters[-1]
    return {"image_prompt": [*zip(adapters, pictures if count > 1 else [pictures], strict=True)]}


def texts_of_image_prompts(options: Any) -> dict[str, Any]:
    """Returns what a picture's text says of the image prompts: the options, with plain values."""
    return {name: tuple(map(str, getattr(options, name))) for name in NAMES}


def settings_of_image_prompts(arguments: dict[str, Any], options: Any) -> dict[str, Any]:
    """Returns what a batch run records of its image prompts, so that it goes on with the same ones only; {} without."""
    if not options.image_prompt:
        return {}
    from sdjax.files import digest_of_file
    from sdjax.model.value import digest

    adapters = [adapter for adapter, _ in arguments["image_prompt"]]
    return {
        "image_prompt": [digest(adapter.params) for adapter in adapters],
        "image_prompt_encoder": [digest(adapter.tower) for adapter in adapters],
        "image_prompt_image": [digest_of_file(path) for path in options.image_prompt_image],
    }


def image_prompts_of_picture(found: dict[str, Any], options: Any) -> None:
    """Changes what --from found in a picture's text: flags replace its lists, and --image-prompt all of them."""
    for name in NAMES:
        if getattr(options, name) != getattr(type(options), name) or options.image_prompt:
            found.pop(name, None)
    if "image_prompt_image" in found:
        found["image_prompt_image"] = tuple(map(Path, found["image_prompt_image"]))
