"""Getting the peers that illm is measured beside, from package indexes alone and without root.

Recipes for nginx, the two Rust routers and LiteLLM, kept in the same cache as the real engines of the tests, under the
same lock and stamp (tests/engines/install.py). It starts nothing: `targets` knows how.

    python -m benchmarks.install NAME      prints the path of the peer's program
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.engines.install import (
    CANNOT_BE_HAD,
    DEBIAN_SUITE,
    CannotBeHad,
    Place,
    Recipe,
    ensure_recipe,
    make_venv,
    unpack_debian,
    write_script,
)

# With the libraries that it is linked to: the suite is newer than most machines.
_NGINX_PACKAGES: Final = ("nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3t64", "libzstd1", "zlib1g")


def _build_nginx(place: Place) -> None:
    root = place.home / "root"
    unpack_debian(place, root, _NGINX_PACKAGES)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = f"{libraries}/ld-linux-x86-64.so.2 --library-path {libraries}"
    write_script(place.home / "bin/nginx", f'exec {loader} {root}/usr/sbin/nginx "$@"')
    place.run(place.home / "bin/nginx", "-v")


def _from_pypi(requirement: str, program: str, *proof: str) -> Callable[[Place], None]:
    def build(place: Place) -> None:
        make_venv(place)(requirement)
        place.run(place.home / "bin" / program, *proof)

    return build


def _pypi(name: str, version: str, program: str, extra: str = "") -> Recipe:
    return Recipe(version, f"bin/{program}", _from_pypi(f"{name}{extra}=={version}", program, "--help"))


PEERS: Final[Mapping[str, Recipe]] = {
    "nginx": Recipe(DEBIAN_SUITE, "bin/nginx", _build_nginx),
    "vllm-router": _pypi("vllm-router", "0.1.17", "vllm-router"),
    "sglang-router": _pypi("sglang-router", "0.3.2", "smg"),
    "litellm": _pypi("litellm", "1.106.2", "litellm", "[proxy]"),
}


def ensure_peer(name: str) -> Path:
    """The path of the peer's program, after getting what is missing (blocks, minutes). Raises `CannotBeHad`."""
    return ensure_recipe(name, PEERS[name])


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in PEERS:
        raise SystemExit(f"Name one of {', '.join(PEERS)}.")
    try:
        print(ensure_peer(sys.argv[1]))
    except CannotBeHad as reason:
        print(f"{sys.argv[1]}: {reason}", file=sys.stderr)
        return CANNOT_BE_HAD
    return 0


if __name__ == "__main__":
    sys.exit(main())
