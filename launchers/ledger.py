"""What runs, on disk: one file for each engine, so that the next launcher finds what this one left; and the lock that
makes sure that there is only one launcher for a state folder.

Reads and writes small files, which blocks a little. Not here: whether what is recorded is still there (`process`).
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import msgspec

from launchers.running import Record

log = logging.getLogger("illm.launcher")

_LOCK: Final = "launcher.lock"


class Ledger:
    """The records in one folder, which it makes if need be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, record: Record) -> None:
        """Puts it in the place of an engine's earlier record; whole or not at all. Raises OSError."""
        file = self._file(record.name)
        new = file.with_name(f"{file.name}.new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        new.replace(file)

    def remove(self, name: str) -> None:
        """Does nothing where there is none."""
        with suppress(FileNotFoundError):
            self._file(name).unlink()

    def read(self) -> list[Record]:
        """All records, by name. A file that is no record is left out, and said."""
        found: list[Record] = []
        for file in sorted(self.folder.glob("*.json")):
            try:
                found.append(msgspec.json.decode(file.read_bytes(), type=Record))
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
                log.warning(
                    "%s is no record of an engine (%s); an engine that it stood for isn't found again", file, exc
                )
        return found

    def _file(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}.json"


class Locked(Exception):
    """Another launcher has the folder; the text is for people."""


class Lock:
    """A state folder for one launcher alone, from `lock` to `close` or the end of the process, however that comes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Idempotent. The file stays: whoever removed it could remove the next one's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock(folder: Path) -> Lock:
    """Take the folder, made if need be; at once or not at all. Raises `Locked` where another launcher has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flock(fd, LOCK_EX | LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        who = f"Another launcher (process {pid})" if pid else "Another launcher"
        raise Locked(f"{who} already runs with the state folder {folder}. Use that one, or stop it first.") from None
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd)
