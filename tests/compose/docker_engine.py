"""Docker for the tests of compose.yaml: the engine that answers here, else one of Debian's, started for a test alone.

A machine without Docker needs root and Debian's apt for that: `docker.io` is installed, a daemon is started on a socket
and with a folder of its own, and ended again. It gets no bridge and no rules in the firewall, so containers share the
machine's network. Compose v2 is unpacked from Debian's newest suite, not installed. Nothing of illm is known here.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engines import install
from tests.engines.process import AGES, PATIENCE, ServerProcess, wait_until

PYTHON = "python:3.11-slim"
STAND_IN = "illm-test-python:3.11"  # never under the name of the real one
RELEASE = "bookworm"  # of Debian, with Python 3.11


@dataclass(frozen=True, slots=True)
class Docker:
    """An engine that answers. `env` is laid over this process's own."""

    env: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, seconds: float = PATIENCE, **env: str) -> str:
        """Runs `docker …` to its end; returns what it printed. Raises AssertionError, with all of it, if it fails."""
        done = self.run(*words, seconds=seconds, **env)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *words: str, seconds: float = PATIENCE, **env: str) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, **self.env, **env}
        return subprocess.run(["docker", *words], env=whole, capture_output=True, text=True, timeout=seconds)

    def inspect(self, container: str) -> dict[str, Any]:
        (found,) = json.loads(self("inspect", container))
        return dict(found)

    @property
    def answers(self) -> bool:
        if shutil.which("docker") is None:
            return False
        return self.run("version").returncode == 0


@contextmanager
def docker_engine(folder: Path) -> Iterator[Docker]:
    """An engine with Compose v2, and no engine of the test's own left behind. Raises install.CannotBeHad."""
    if sys.platform != "linux":
        raise install.CannotBeHad("the network of the machine itself is needed, which containers have on Linux alone")
    docker = Docker()
    with ExitStack() as running:
        if not docker.answers:
            _install("dockerd", "docker.io")
            _install("docker", "docker-cli")
        if not docker.answers:  # a package may have started one
            docker = running.enter_context(_started(folder))
        if docker.run("compose", "version").returncode != 0:
            docker = Docker({**docker.env, "DOCKER_CONFIG": str(_with_compose(folder))})
        yield docker


def python_image(docker: Docker) -> str:
    """The image that illm's is built from; where no registry can be reached, a stand-in of Debian's packages."""
    for image in (PYTHON, STAND_IN):
        if docker.run("image", "inspect", image).returncode == 0:
            return image
    if docker.run("pull", PYTHON, seconds=AGES).returncode == 0:
        return PYTHON
    archive = install.ensure_recipe(
        "python-image", install.Recipe(f"{RELEASE}-dev", "image.tar", _build_python)
    ).absolute()
    docker("import", "-c", "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt", str(archive), STAND_IN)
    return STAND_IN


def compose_plugin() -> Path:
    """The path of Compose v2 as a program. Raises install.CannotBeHad."""
    return install.ensure_recipe(
        "docker-compose",
        install.Recipe(install.DEBIAN_SUITE, "root/usr/libexec/docker/cli-plugins/docker-compose", _build_compose),
    )


# --- how they are had ----------------------------------------------------------------------------------------------


def _install(program: str, package: str) -> None:
    """Debian's package, where its program isn't there."""
    if shutil.which(program) is not None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise install.CannotBeHad(f"no Docker answers here, and installing {package} needs root and Debian's apt")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", "--yes", "--no-install-recommends", package)):
        done = subprocess.run(["apt-get", "-qq", *words], env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise install.CannotBeHad(f"apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")


@contextmanager
def _started(folder: Path) -> Iterator[Docker]:
    """A daemon in `folder`, which is emptied of what it kept."""
    if os.geteuid() != 0:
        raise install.CannotBeHad("no Docker answers here, and starting one needs root")
    home = folder / "docker"
    home.mkdir()
    socket = home / "docker.sock"
    docker = Docker({"DOCKER_HOST": f"unix://{socket}"})
    command: list[str | Path] = ["dockerd", "--host", f"unix://{socket}", "--pidfile", home / "pid"]
    command += ["--data-root", home / "data", "--exec-root", home / "exec"]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    daemon = ServerProcess(command, port=0, log=home / "log")
    try:
        daemon.wait_ready(lambda: docker.answers)
        yield docker
    finally:
        daemon.terminate()  # it unmounts and ends its containers, which takes its time
        wait_until(lambda: daemon.returncode is not None, "dockerd has ended")
        daemon.stop()
        _unmount_all(home)
        shutil.rmtree(home, ignore_errors=True)


def _unmount_all(folder: Path) -> None:
    """What the daemon leaves mounted: a namespace of the network, and everything where it was killed."""
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.is_relative_to(folder)]):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def _with_compose(folder: Path) -> Path:
    """A configuration of the command `docker` that has Compose."""
    plugins = folder / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(compose_plugin())
    return plugins.parent


def _build_compose(place: install.Place) -> None:
    install.unpack_debian(place, place.home / "root", ("docker-compose",))
    place.run(place.home / "root/usr/libexec/docker/cli-plugins/docker-compose", "version")


def _build_python(place: install.Place) -> None:
    """Debian with its Python, for want of the real image: the same commands in the same places."""
    _install("debootstrap", "debootstrap")
    root = place.home / "root"
    packages = "python3,python3-venv,python3-pip,python3-dev,ca-certificates"
    place.run("debootstrap", "--variant=minbase", f"--include={packages}", RELEASE, root, install.debian_mirror())
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    # Whoever this machine trusts; there may be a proxy between it and the package index.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    for left in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / left)
    place.run("tar", "--create", "--file", place.home / "image.tar", "--directory", root, ".")
    shutil.rmtree(root)
    (place.home / "image.tar").chmod(0o755)  # what a recipe makes is looked for as a program
