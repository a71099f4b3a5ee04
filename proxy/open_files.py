"""How many files this process may have open (every connection is one), and what is said when there are no more.

Not here: opening anything that stays open.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from typing import Final

if sys.platform != "win32":
    import resource

log = logging.getLogger("illm")

SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE))
CAUTIOUS: Final = 10240  # where the highest can't be had: macOS says that there is none, and takes no more than this
REPEAT: Final = 60.0  # seconds until a shortage that lasts is said again


def raise_limit() -> int | None:
    """Allow this process, and what it starts, as many as it may have. The limit before, for what can't live with more
    (`select` breaks above 1024); None where it stays what it was."""
    if sys.platform == "win32":
        return None
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before == resource.RLIM_INFINITY:
        return None
    for wanted in (most, CAUTIOUS):
        if wanted == resource.RLIM_INFINITY or wanted > before:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
                return before
    return None


def shortage(exc: BaseException) -> str | None:
    """What an error says, if it says that there are no more."""
    if not isinstance(exc, OSError) or exc.errno not in SHORT:
        return None
    if exc.errno == errno.ENFILE or sys.platform == "win32":
        return "this machine has no file descriptors left"
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"the gateway has no file descriptors left (limit {limit})"


class Watch:
    """Says in the log when there are no more: uvloop closes a connection that it has no descriptor for without a
    word. One shortage may be too short to be seen."""

    def __init__(self) -> None:
        self._said = -REPEAT

    async def look(self) -> None:
        """Once a second, or so; takes microseconds."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as exc:
            now = time.monotonic()
            if (said := shortage(exc)) is not None and now - self._said >= REPEAT:
                self._said = now
                log.error("%s: new connections are closed or wait; raise it (LimitNOFILE, ulimit -n)", said)
