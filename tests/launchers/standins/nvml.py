"""The stand-in of NVIDIA's library as tests use it: built once into a folder, its state written to a file, and the
environment that makes a program load it in place of the real one."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "libnvidia-ml.so.1"
GiB = 1024**3


class NoCompiler(Exception):
    """It can't be built here."""


def build(folder: Path, *, old: bool = False) -> Path:
    """The library, in a folder of its own. `old`: as a driver before R510 had it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("no C compiler here")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY
    options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *(["-DOLD"] if old else [])]
    subprocess.run([compiler, *options, "-o", str(library), str(SOURCE)], check=True)
    return library


def environment(library: Path, state: Path) -> dict[str, str]:
    """What a program is to have in its environment."""
    return {"LD_LIBRARY_PATH": str(library.parent), "NVML_STATE": str(state)}


def write(state: Path, *lines: str) -> None:
    """The state whole, or not at all: readers look at any time."""
    new = state.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(state)
