"""Compiles ahead what the first requests would wait for."""

from collections.abc import Sequence
from contextlib import suppress

from sdjax.errors import SdjaxError, log
from sdjax.model.value import StableDiffusion
from sdjax.tasks.options import TaskOptions
from sdjax.web.ask import Ask, checked
from sdjax.web.draw import draw, most_at_once


def warm(sd: StableDiffusion, title: str, sizes: Sequence[int]) -> None:
    """Draws batches of some sizes, of the model's own size and text of one chunk, in one step each.

    Steps from 17 on are compiled apart from fewer, and so are the web UI's usual 20 and 50.
    """
    for size in sizes:
        for steps in (1, 20, 50):
            own = {"height": sd.config.size, "width": sd.config.size, "guidance_scale": 7.0}
            ask = Ask("", TaskOptions(sampler="euler", steps=steps, seed=0, **own))
            try:
                parts = checked(sd, title, ask)[5][0]
            except SdjaxError as error:
                log.warning("--warm: %s", error)
                return
            most = most_at_once(sd, ask, parts)

            def enough(step: int, total: int, picture) -> None:
                if step == total:
                    return
                raise Done

            with suppress(Done):
                draw(sd, [ask] * min(size, most), most, enough if steps > 1 else lambda *_: None)


class Done(Exception):
    """One step is enough."""
