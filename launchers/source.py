"""Where a launcher gets its document from: a command that reads the settings and prints it as JSON.

So there is one reader of settings (`illm launch --print`), and a file with a mistake in it ends that command and not
the launcher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from launchers.spec import Document, SpecError, parse

PATIENCE: Final = 60.0  # seconds


async def read(command: Sequence[str]) -> Document:
    """Run the command. Raises `SpecError` with its own words."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, process_group=0
        )
    except OSError as exc:
        raise SpecError(f"Can't read the settings: {command[0]}: {exc.strerror}.") from None
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    except TimeoutError:
        raise SpecError(f"Reading the settings took longer than {PATIENCE:g} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise SpecError(
            err.decode(errors="replace").strip() or f"Reading the settings ended with {process.returncode}."
        )
    return parse(out)
