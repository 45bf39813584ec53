"""Samplers and schedulers by the web UI's names."""

from typing import Any

from sdjax.diffusion.schedule import SIGMAS
from sdjax.diffusion.tables import Sampler, samplers
from sdjax.image.parameters import AUTOMATIC, plain_name, read_sampler
from sdjax.web.refusals import Refused

UNIFORM = ("uniform", "default")


def find_sampler(name: str, scheduler: str | None, field: str) -> dict[str, Any]:
    """Returns {"sampler", "sigmas"} for the web UI's name of a sampler, "DPM++ 2M Karras", and of a scheduler.

    A scheduler that there is not means the sampler's own, as in the web UI; so does one that the sampler does not take.
    Refused: there is no such sampler.
    """
    found = read_sampler(name)
    sampler = samplers.get(found["sampler"])
    if sampler is None:
        raise Refused("Sampler not found; samplers lists them", field, 400, "sampler_not_found")
    sigmas = found.get("sigmas") or scheduled(scheduler, sampler)
    return {"sampler": sampler.name, "sigmas": sigmas if sigmas in sampler.sigmas else "default"}


def scheduled(scheduler: str | None, sampler: Sampler) -> str:
    """Returns the name of our sigmas for a scheduler's name or label; None is the sampler's own."""
    name = plain_name(scheduler or "automatic").strip("_")
    if name in UNIFORM:
        return "default"
    if name in SIGMAS:
        return name
    return AUTOMATIC.get(sampler.name, "default").lower()


def listed_samplers() -> list[dict[str, Any]]:
    """Returns the web UI's list of samplers."""
    found = []
    for sampler in samplers.values():
        k_name = "k_" + sampler.name.removesuffix("_a") + ("_ancestral" if sampler.name.endswith("_a") else "")
        options = {"scheduler": AUTOMATIC[sampler.name].lower()} if sampler.name in AUTOMATIC else {}
        found.append({"name": sampler.label or sampler.name, "aliases": [k_name, sampler.name], "options": options})
    return found


def listed_schedulers() -> list[dict[str, Any]]:
    """Returns the web UI's list of schedulers."""
    rows = [("automatic", "Automatic", None), ("uniform", "Uniform", None)]
    rows += [(name, row.label, None) for name, row in SIGMAS.items() if name != "default"]
    rest = {"default_rho": -1, "need_inner_model": False}
    return [{"name": name, "label": label, "aliases": aliases, **rest} for name, label, aliases in rows]
