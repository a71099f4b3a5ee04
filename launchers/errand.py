"""A program that the launcher runs for itself, to its end, and whose lines it hears meanwhile: pip, `docker pull`.

Nothing of it is left when its waiter is cancelled. Engines are another matter (`process`), and so is what the lines
mean.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

LAST_WORDS: Final = 12  # lines that an error shows
GRACE: Final = 5.0  # seconds that it gets to end
LONGEST_LINE: Final = 2**20


@dataclass(frozen=True, slots=True)
class Done:
    """How it ended. `words`: the last of its lines."""

    status: int
    words: str


async def run(
    argv: Sequence[str],
    hear: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Done:
    """Run it in a process group of its own; `hear` gets each line that it writes. Raises OSError where it can't be
    run."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        pass_fds=pass_fds,
        limit=LONGEST_LINE,
        env=env,
    )
    last: deque[str] = deque(maxlen=LAST_WORDS)
    try:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            last.append(line)
            hear(line)
        return Done(await process.wait(), "\n".join(last))
    except BaseException:
        await _end(process)
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its whole group: an interrupt, at which pip clears its temporary files away, then by force whatever is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            await process.wait()
    with suppress(ProcessLookupError, PermissionError):  # macOS: the latter where only zombies are left
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
