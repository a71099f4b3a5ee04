"""A `docker` for tests: a program that runs what stands behind the image as a process, and knows its containers.

Which images are here and which containers run is in the folder that FAKE_DOCKER names: `images/NAME`, `containers/NAME`
(a pid). A pull waits until `pull` is there in that folder, and fails with what is in it; a run fails with what is in
`refuse`, or once with what is in `refuse-once`. Without a file `daemon` nothing is answered but an error, as where no
daemon runs. Each call is a line in `calls`.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HOME = Path(os.environ["FAKE_DOCKER"])
VALUED = ("--name", "-p", "--gpus", "--ipc", "-v", "-e", "--entrypoint")  # options with a word of their own


def file_of(image: str) -> Path:
    return HOME / "images" / image.replace("/", "_")


def main() -> int:
    words = sys.argv[1:]
    with (HOME / "calls").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    if not (HOME / "daemon").exists():
        return fail(125 if words[0] == "run" else 1, "Cannot connect to the Docker daemon at unix:///run/docker.sock.")
    if words[:2] == ["image", "inspect"]:
        return 0 if file_of(words[-1]).exists() else fail(1, f"Error: No such image: {words[-1]}")
    return {"pull": pull, "run": run, "rm": remove}[words[0]](words[1:])


def pull(words: list[str]) -> int:
    print(
        f"latest: Pulling from {words[0]}\n0123456789ab: Pulling fs layer\nba9876543210: Pulling fs layer", flush=True
    )
    print("0123456789ab: Pull complete", flush=True)
    while not (HOME / "pull").exists():
        time.sleep(0.02)
    if said := (HOME / "pull").read_text():
        return fail(1, said)
    file_of(words[0]).touch()
    print("ba9876543210: Pull complete", flush=True)
    return 0


def run(words: list[str]) -> int:
    told: dict[str, str] = {}
    while words[0].startswith("-"):
        option = words.pop(0)
        if option in VALUED:
            told[option] = words.pop(0)
    for name in ("refuse", "refuse-once"):
        if (refusal := HOME / name).exists():
            said = refusal.read_text()
            if name == "refuse-once":
                refusal.unlink()
            return fail(125, said)
    if not file_of(words[0]).exists():
        return fail(125, f"Unable to find image '{words[0]}' locally")
    container = HOME / "containers" / told["--name"]
    if container.exists():
        return fail(125, f"Conflict. The container name {told['--name']!r} is already in use")
    program = [*([told["--entrypoint"]] if "--entrypoint" in told else []), *words[1:]]
    inside = subprocess.Popen(program, start_new_session=True)
    container.write_text(str(inside.pid))
    signal.signal(signal.SIGTERM, lambda number, frame: inside.terminate())
    status = inside.wait()
    container.unlink(missing_ok=True)
    return status if status >= 0 else 128 - status


def remove(words: list[str]) -> int:
    container = HOME / "containers" / words[-1]
    if not container.exists():
        return fail(1, f"Error response from daemon: No such container: {words[-1]}")
    pid = int(container.read_text() or 0)
    container.unlink()
    if pid > 0:  # else: one whose process is gone
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return 0


def fail(status: int, text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
