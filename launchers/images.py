"""A container's image: there already, or pulled, which takes minutes and is told while it does.

Before the start itself, so that the minutes are none of its `start_timeout` and nobody has had to make room yet. Not
here: what docker is told of the container (`engines/container`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from launchers import errand
from launchers.spec import SpecError

PULLING: Final = "pulling image"
_LAYER: Final = re.compile(r"^[0-9a-f]{6,64}: (?P<what>Pulling fs layer|Already exists|Pull complete)")

Say = Callable[[str, float | None], None]


class PullFailed(SpecError):
    """The image isn't here and can't be had; the text has docker's own words."""


async def ensure(docker: Sequence[str], image: str, env: Mapping[str, str], say: Say) -> None:
    """Returns when it is there. Takes as long as that takes. Raises `PullFailed`, also where docker itself doesn't
    answer."""
    words = (*docker, "image", "inspect", "--format", "{{.Id}}", image)
    try:
        there = await errand.run(words, lambda line: None, env=env)
        if there.status == 0:
            return
        say(PULLING, None)
        pulled = await errand.run((*docker, "pull", image), _Layers(say), env=env)
    except OSError as exc:
        raise PullFailed(f"{docker[0]} can't be run: {exc.strerror}.") from None
    if pulled.status:
        raise PullFailed(f"its image {image} is not here and can't be pulled. Docker's last words:\n{pulled.words}")


class _Layers:
    """Hears a pull, and says which share of the image's layers is there."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._known = 0
        self._there = 0

    def __call__(self, line: str) -> None:
        match = _LAYER.match(line)
        if match is None:
            return
        self._known += match["what"] != "Pull complete"
        self._there += match["what"] != "Pulling fs layer"
        self._say(PULLING, min(self._there / max(self._known, 1), 1.0))
