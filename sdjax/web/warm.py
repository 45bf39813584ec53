"""Compiles ahead what the first requests would wait for."""

from collections.abc import Sequence

from sdjax.errors import SdjaxError, log
from sdjax.model.value import StableDiffusion
from sdjax.tasks.options import TaskOptions
from sdjax.web.ask import Ask, checked
from sdjax.web.draw import draw, most_at_once


def warm(sd: StableDiffusion, title: str, sizes: Sequence[int]) -> None:
    """Draws batches of some sizes, of the model's own size and text of one chunk, in one step. Other numbers of steps
    and other samplers compile nothing more."""
    for size in sizes:
        own = {"height": sd.config.size, "width": sd.config.size, "guidance_scale": 7.0}
        ask = Ask("", TaskOptions(sampler="euler", steps=1, **own))
        try:
            most = most_at_once(sd, ask, checked(sd, title, ask).text)
            draw(sd, [ask] * min(size, most), most, lambda *_: None)
        except SdjaxError as error:
            log.warning("--warm: %s", error)
            return
