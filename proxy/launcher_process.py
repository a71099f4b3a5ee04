"""The launcher of this machine as a process: where it lives, how it is started, found and ended.

Everything here blocks: it runs before the gateway's event loop and after it. What is said to a launcher is in
`launcher_client`; the launcher itself is another program, known only by its command line and its control API.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.launcher_client import UNIX, Address, LauncherClient, LauncherError, left_over
from proxy.settings import LauncherSettings
from proxy.settings_types import Key

PATIENCE: Final = 30.0  # seconds until a launcher that was started must answer
FAREWELL: Final = 15.0  # seconds that it gets to end its engines before nobody waits for it any more
CHECKING: Final = 60.0  # seconds that it gets to read the settings and say what is wrong with them
POLL: Final = 0.05
LONGEST_SOCKET: Final = 103  # bytes of a socket's path; Linux takes 107, macOS 103
LOG_TAIL: Final = 2000  # characters


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one launcher."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def socket(self) -> Path:
        return self.folder / "launcher.sock"

    @property
    def log(self) -> Path:
        return self.folder / "launcher.log"

    def make(self) -> None:
        """Make the folder, for this user only. Raises `LauncherError`."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise LauncherError(
                f"The launcher's folder {self.folder} can't be made: {exc.strerror}. Set launcher.state to another one."
            ) from None


def state_root(setting: str | None, environ: Mapping[str, str]) -> Path:
    """The folder of all launchers' folders."""
    if setting:
        return Path(setting).expanduser().absolute()
    base = environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "illm"


def home(root: Path, label: str) -> Home:
    """A launcher's folder. Raises `LauncherError` where no socket could be in it."""
    found = Home(root / label)
    if len(os.fsencode(found.socket)) > LONGEST_SOCKET:
        raise LauncherError(
            f"The launcher's socket would be {found.socket}, which is longer than a socket's path may be "
            f"({LONGEST_SOCKET} bytes). Set launcher.state (ILLM_LAUNCHER__STATE) to a folder with a shorter path."
        )
    return found


def address(place: Home, settings: LauncherSettings) -> Address:
    """Where the launcher of that folder takes orders. It is called as the folder is, everywhere."""
    if settings.listen is None:
        return Address(place.name, f"{UNIX}{place.socket}", own=True)
    return address_of(place.name, connectable(settings.listen), settings.api_key, own=True)


def address_of(name: str, url: str, key: Key | None, *, own: bool = False) -> Address:
    """An address with its key in plain text."""
    return Address(name, url, key.get_secret_value() if key else None, own)


def connectable(url: str) -> str:
    """A listening address as one to connect to."""
    return url.replace("://0.0.0.0", "://127.0.0.1").replace("://[::]", "://[::1]")


def command(place: Home, source: Sequence[str], *, for_gateway: bool) -> list[str]:
    """The launcher's command line."""
    mode = ["--for-gateway"] if for_gateway else []
    return [sys.executable, "-P", "-m", "launchers", "--state", str(place.folder), *mode, "--", *source]


def problems(source: Sequence[str]) -> list[str]:
    """What the launcher itself would refuse of the settings, a line each. Blocks for a second."""
    words = [sys.executable, "-P", "-m", "launchers", "--check", "--", *source]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHECKING)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [f"The launcher did not read the settings within {CHECKING:g} s."]
    return (done.stderr if done.returncode else done.stdout).splitlines()


def ensure(place: Home, there: Address, source: Sequence[str], open_files: int | None = None) -> str:
    """Make sure that a launcher runs there, by the settings as they are now; a line about it for people.

    One that runs is told to read its settings anew. `open_files`: its limit of them, and its engines'; None: as this
    process has it. Raises `LauncherError`.
    """
    if listens(there):
        left = left_over(asyncio.run(_reload(there)))
        said = f"The launcher that runs already (pid {about(there).get('pid')}) read the settings anew."
        return f"{said} {left}".rstrip()
    place.make()
    process, start = _spawn(place, _limited(command(place, source, for_gateway=True), open_files))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = process.poll() is not None  # before the look: another may have been faster, and is there now
        if listens(there) and (pid := _pid(there, process)) is not None:
            return f"Started the launcher (pid {pid}; its log: {place.log})."
        if ended:
            raise LauncherError(f"The launcher did not start. {_last_words(place, start)}")
        time.sleep(POLL)
    process.terminate()
    raise LauncherError(f"The launcher did not answer within {PATIENCE:g} s. {_last_words(place, start)}")


def _pid(there: Address, process: subprocess.Popen[bytes]) -> object:
    """Of the launcher that answers there; None where the one that was started ended before it did."""
    try:
        return about(there).get("pid")
    except LauncherError:
        if process.poll() is None and listens(there):
            raise
        return None


def listens(there: Address) -> bool:
    """Whether anybody does. Takes no time on this machine, two seconds at most elsewhere."""
    with suppress(OSError):
        if there.url.startswith(UNIX):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(2.0)
                sock.connect(there.url.removeprefix(UNIX))
            return True
        parts = urlsplit(there.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=2.0).close()
        return True
    return False


def about(there: Address) -> dict[str, Any]:
    """What a launcher says of itself. Raises `LauncherError`."""
    return asyncio.run(_about(there))


def tell_to_end(there: Address, *, leave: bool = False, if_unused: bool = False) -> None:
    """See `LauncherClient.shutdown`. Raises `LauncherError`."""
    asyncio.run(_shutdown(there, leave=leave, if_unused=if_unused))


def see_end(there: Address) -> None:
    """Until it has ended, or for `FAREWELL` seconds."""
    deadline = time.monotonic() + FAREWELL
    while listens(there) and time.monotonic() < deadline:
        time.sleep(POLL)


async def _about(there: Address) -> dict[str, Any]:
    client = LauncherClient(there)
    try:
        return await client.about()
    finally:
        await client.aclose()


async def _reload(there: Address) -> dict[str, Any]:
    client = LauncherClient(there)
    try:
        return await client.reload(False)
    finally:
        await client.aclose()


async def _shutdown(there: Address, *, leave: bool, if_unused: bool) -> None:
    client = LauncherClient(there)
    try:
        await client.shutdown(leave=leave, if_unused=if_unused)
    finally:
        await client.aclose()


def _limited(words: list[str], open_files: int | None) -> list[str]:
    """A command line with a limit of its own. By a shell, as nothing safe can run between fork and exec in a process
    that has threads."""
    return words if open_files is None else ["sh", "-c", 'ulimit -S -n "$0"; exec "$@"', str(open_files), *words]


def _spawn(place: Home, words: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """The process, in a session of its own so that a terminal's Ctrl-C isn't its, and where its log begins."""
    log = os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        start = os.fstat(log).st_size
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(words, stdin=nothing, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
    finally:
        os.close(log)
    threading.Thread(target=process.wait, name="launcher", daemon=True).start()  # or its end would leave a zombie
    return process, start


def _last_words(place: Home, start: int) -> str:
    with place.log.open("rb") as log:
        log.seek(start)
        said = log.read().decode(errors="replace").strip()[-LOG_TAIL:]
    return f"It said:\n{said}" if said else f"It said nothing ({place.log})."
