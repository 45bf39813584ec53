"""Downloads models from the Hugging Face hub by their id: only the files that are needed, cached by huggingface_hub.

The hub is asked for the names of a model's files. If it does not answer, the cached files are taken. huggingface_hub is
imported only in this file, and only inside functions.
"""

import contextlib
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdjax.errors import SdjaxError, log
from sdjax.weights.folder import DIFFUSERS, FOLDERS, TRANSFORMERS, shard_names, weights_file

WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt")  # a name that ends in one of these means a file, not a hub id
SECONDS = 7  # time limit for the hub's answer, including the look-up of its address

CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "image_noising_scheduler/scheduler_config.json",
    *(f"{folder}/config.json" for folder in FOLDERS),
    *(
        f"{folder}/{name}"
        for folder in ("tokenizer", "tokenizer_2")
        for name in (
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        )
    ),
)


def is_hub_id(source: str) -> bool:
    """Does `source` look like organisation/name, and not like a weights file?"""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source, re.ASCII) or source.endswith(WEIGHTS):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with contextlib.suppress(HFValidationError):
        validate_repo_id(source)
        return True
    return False


def fetch_folder(repo: str, variant: str | None = None) -> Path:
    """Downloads the missing files of the hub model `repo` and returns its folder in the cache.

    If the hub does not answer within SECONDS, or with HF_HUB_OFFLINE=1, it returns what an earlier call cached.
    SdjaxError: there is no such model, it is no diffusers folder, or the download stopped.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = find_cached(repo)
    try:
        names = list_files(repo)
    except SdjaxError as error:
        if cached is None:
            raise SdjaxError(
                f"{repo}: no such folder or file here, no such model in the cache {HF_HUB_CACHE}, and {error}"
            ) from None
        log.warning("%s: taken from the cache, since %s", repo, error)
        return cached
    if "model_index.json" not in names:
        files = sorted(name for name in names if name.endswith((".safetensors", ".ckpt")))[:3]
        raise SdjaxError(
            f"{repo}: that model on the hub has no model_index.json, so is no diffusers folder"
            + (f"; download one of its files and name that: {', '.join(files)} ..." if files else "")
        )

    weights = chosen_weights(names, variant)
    folder = download(repo, [name for name in CONFIGS if name in names] + weights)
    if shards := [
        f"{Path(index).parent.as_posix()}/{shard}"
        for index in weights
        if index.endswith(".json")
        for shard in shard_names(folder / index)
    ]:
        download(repo, shards)
    return folder


def download(repo: str, wanted: Sequence[str]) -> Path:
    """Downloads those of the files `wanted` that the cache lacks and returns their folder there. SdjaxError: it
    stopped."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(wanted)))
    except Exception as error:  # of the connection, the disk or the hub; the classes depend on its version
        raise SdjaxError(
            f"{repo}: the download stopped, {said(error)}; finished files are kept, load it again to go on"
        ) from None


def fetch_lora(repo: str, names: Sequence[str]) -> Path:
    """Downloads a LoRA of the hub and returns the folder of its files in the cache, or its file if it has one
    safetensors file of another name.

    names: of the files that a folder of a LoRA holds.
    SdjaxError: there is no such repository, it holds no LoRA or several, or the download stopped.
    """
    from huggingface_hub import snapshot_download

    try:
        there = list_files(repo)
    except SdjaxError as error:
        try:
            cached = Path(snapshot_download(repo, local_files_only=True))
        except Exception:  # the classes depend on huggingface_hub's version
            raise SdjaxError(f"{repo}: no such folder or file here, not in the cache, and {error}") from None
        log.warning("%s: taken from the cache, since %s", repo, error)
        there = {path.name for path in cached.iterdir()}
    wanted = [name for name in names if name in there]
    files = sorted(name for name in there if name.endswith(".safetensors") and "/" not in name)
    if not wanted and len(files) != 1:
        raise SdjaxError(f"{repo}: holds none of {', '.join(names)}; download a file and name that: {files[:3]}")
    folder = download(repo, wanted or files)
    return folder if wanted else folder / files[0]


def chosen_weights(names: Iterable[str], variant: str | None = None) -> list[str]:
    """Returns, from a model's file names, those of each part's weights or of the index of their shards. A part may have
    none."""
    found = []
    for folder, stems in FOLDERS.items():
        inside = {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")}
        if name := weights_file(inside, stems, variant):
            found.append(f"{folder}/{name}")
    return found


def find_cached(repo: str) -> Path | None:
    """Returns the folder of the newest version of `repo` in the cache, complete or not, or None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repo, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def list_files(repo: str) -> set[str]:
    """Asks the hub for the names of the model's files. SdjaxError: the reason why it gave none within SECONDS; the
    message does not name the model."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise SdjaxError("HF_HUB_OFFLINE is set")
    answer: list[set[str] | Exception] = []

    def ask() -> None:
        try:
            answer.append({file.rfilename for file in HfApi().model_info(repo, timeout=SECONDS).siblings or ()})
        except Exception as error:  # the caller raises it
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # looking up an address has no time limit of its own
    thread.start()
    thread.join(SECONDS)
    if not answer:
        raise SdjaxError(f"the hub ({constants.ENDPOINT}) did not answer within {SECONDS} seconds")
    if isinstance(answer[0], Exception):
        raise SdjaxError(said(answer[0]))
    return answer[0]


def said(error: Exception) -> str:
    """Returns one short clause that says what an error of huggingface_hub means."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "the hub gives it only to those who accepted its licence and logged in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or not without a token (hf auth login)"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered with status {error.response.status_code}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__})"


def fetch_part(repo: str) -> Path:
    """Downloads one network of the hub, a repository of config.json and weights, and returns its folder in the cache.

    SdjaxError: there is no such model, it holds no weights, or the download stopped.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        names = list_files(repo)
    except SdjaxError as error:
        cached = try_to_load_from_cache(repo, "config.json")
        if not isinstance(cached, str):
            raise SdjaxError(f"{repo}: no such folder or file here, nor in the cache, and {error}") from None
        log.warning("%s: taken from the cache, since %s", repo, error)
        return Path(cached).parent
    weights = weights_file({name for name in names if "/" not in name}, DIFFUSERS)
    if "config.json" not in names or weights is None:
        files = sorted(name for name in names if name.endswith((".safetensors", ".ckpt", ".pth")))[:3]
        raise SdjaxError(
            f"{repo}: that model on the hub has no config.json with weights beside it"
            + (f"; download one of its files and name that: {', '.join(files)} ..." if files else "")
        )
    folder = download(repo, ["config.json", weights])
    if weights.endswith(".json"):
        download(repo, shard_names(folder / weights))
    return folder


def fetch_inside(source: str) -> Path:
    """Downloads a file, or a network's folder, that lies inside of a repository of the hub, and returns its path.

    source: org/name/path/to/it. SdjaxError: no such repository, file or folder, or the download stopped.
    """
    from huggingface_hub import snapshot_download

    *repo, inside = source.split("/", 2) if source.count("/") > 1 else (source,)
    repo = "/".join(repo)
    if not is_hub_id(repo) or not inside or ".." in inside.split("/"):
        raise SdjaxError(f"{source}: no such file or folder")
    try:
        names = list_files(repo)
    except SdjaxError as error:
        with contextlib.suppress(Exception):  # whose classes depend on huggingface_hub's version
            cached = Path(snapshot_download(repo, local_files_only=True)) / inside
            if cached.exists():
                log.warning("%s: taken from the cache, since %s", source, error)
                return cached
        raise SdjaxError(f"{source}: no such file or folder here, nor in the cache, and {error}") from None
    if inside in names:
        return download(repo, [inside]) / inside
    below = {name.removeprefix(f"{inside}/") for name in names if name.startswith(f"{inside}/")}
    weights = weights_file(below, TRANSFORMERS)
    if "config.json" not in below or weights is None:
        raise SdjaxError(f"{source}: {repo} on the hub has no such file, nor a folder of config.json and weights")
    folder = download(repo, [f"{inside}/config.json", f"{inside}/{weights}"]) / inside
    if weights.endswith(".json"):
        download(repo, [f"{inside}/{shard}" for shard in shard_names(folder / weights)])
    return folder
