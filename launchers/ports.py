"""Ports on this machine: a free one, and who holds a taken one. Looks and tells; keeps nothing."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

_LISTENING: Final = "0A"  # TCP_LISTEN in /proc/net/tcp


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment; another program may still be faster."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def is_free(host: str, port: int) -> bool:
    """Whether one may listen there now: False where somebody does. Raises OSError where nobody could."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def holder(port: int) -> str:
    """Who listens there, in words; "another program" where this machine doesn't tell."""
    listeners = _listeners(port)
    for pid, inode in _sockets():
        if inode in listeners:
            with suppress(OSError):
                return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return "another program"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _listeners(port: int) -> set[str]:
    """Inodes of the sockets that listen on that port."""
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _sockets() -> list[tuple[str, str]]:
    """(pid, inode) of every socket that this user may see."""
    found: list[tuple[str, str]] = []
    with suppress(OSError):
        for process in (entry for entry in os.scandir("/proc") if entry.name.isdigit()):
            with suppress(OSError):
                for handle in os.scandir(f"{process.path}/fd"):
                    with suppress(OSError):
                        target = os.readlink(handle.path)
                        if target.startswith("socket:["):
                            found.append((process.name, target[8:-1]))
    return found
