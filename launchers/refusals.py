"""What of a document can't be launched, said with where it stands: before anything is started, or by `illm check`.

Pure. A wrong engine keeps the others from starting too, as any mistake in the settings does: half of what somebody
asked for is harder to notice than nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from launchers.spec import EngineSpec, SpecError
from launchers.start import fingerprint


def problems(engines: Iterable[EngineSpec]) -> list[str]:
    """A line for each engine that can't be launched."""
    found = []
    for spec in engines:
        try:
            fingerprint(spec)
        except SpecError as exc:
            where = spec.where.get(exc.option) or spec.where.get("")
            found.append(f"{where}: {exc}" if where else str(exc))
    return found


def refuse(engines: Iterable[EngineSpec]) -> None:
    """Raises `SpecError` with all that is wrong."""
    if found := problems(engines):
        raise SpecError("\n".join(found))
