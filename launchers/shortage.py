"""Why there is no room: sentences for people, with who holds the memory and what would help.

Pure, as `memory`, which asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from launchers.scene import NOBODY, Holder, Reading, Scene
from launchers.spec import CPU, Device

GiB: Final = 1024**3
MiB: Final = 1024**2
WORTH_NAMING: Final = 256 * MiB  # less than this in other programs' hands explains nothing


def words(size: int) -> str:
    """Bytes as people say them: "22.5 GiB", "512 MiB"."""
    if size >= GiB - MiB // 2:
        return f"{size / GiB:.1f}".removesuffix(".0") + " GiB"
    return f"{size / MiB:.0f} MiB" if size >= MiB else ("less than 1 MiB" if size > 0 else "nothing")


def listed(items: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def why_never(scene: Scene, gone: AbstractSet[str]) -> str:
    """One sentence for each device that can't hold it, and what to do."""
    return " ".join(
        _why_not_on(scene, device, gone) for device in scene.want.need if scene.missing(device, gone, hopeful=True)
    )


def _why_not_on(scene: Scene, device: Device, gone: AbstractSet[str]) -> str:
    name, need, limit = scene.want.name, scene.want.need[device], scene.budget.get(device)
    best = max(0, scene.room(device, gone, hopeful=True) or 0)
    reading = scene.readings.get(device)
    size = f" of {words(reading.total)}" if reading is not None else ""
    most = (f"at most {words(best)}" if best else "nothing") + size
    asks = f"{name} needs {words(need) if need else 'memory'} of {_place(device)}"
    allowed = f", where launcher.budget allows {words(limit)}" if limit is not None else ""
    held = _holders(scene, device, gone)
    return (
        f"{asks}{allowed}: {most} can be made free. "
        + (f"Held by {listed(held)}. " if held else "")
        + f"To start it, {listed(_advice(scene, device, gone), 'or')}."
    )


def _holders(scene: Scene, device: Device, gone: AbstractSet[str]) -> list[str]:
    """Who has the memory of a device, once those in `gone` have left."""
    stay = [r for r in scene.residents if r.name not in gone and r.need.get(device)]
    said = [
        f"{r.name} ({'pinned, ' if r.pinned else ''}{'asleep, ' if r.asleep else ''}{words(r.need[device])})"
        for r in stay
    ]
    if (reading := scene.readings.get(device)) is None:
        return said
    said += [h.what if h.bytes is None else f"{h.what} ({words(h.bytes)})" for h in _biggest(reading)]
    ours = scene.held(device, NOBODY)
    rest = reading.total - reading.free - ours - sum(h.bytes or 0 for h in reading.holders)
    return [*said, f"other programs ({words(rest)})"] if rest >= WORTH_NAMING else said


def _biggest(reading: Reading) -> list[Holder]:
    return sorted(reading.holders, key=lambda h: -(h.bytes or 0))[:4]


def _advice(scene: Scene, device: Device, gone: AbstractSet[str]) -> list[str]:
    """What would help on this device, the surest first; never something that can't help."""
    reading, limit = scene.readings.get(device), scene.budget.get(device)
    need = scene.want.need[device] or 1
    pinned = [r for r in scene.residents if r.name not in gone and r.need.get(device)]
    advice = []
    if reading is None or need <= reading.total:
        if limit is not None and limit - scene.held(device, gone) < need:
            advice.append("raise launcher.budget")
        if pinned and (limit is None or need <= limit):
            advice.append(f"unpin {listed(sorted(r.name for r in pinned), 'or')}")
        if reading is not None and _biggest(reading):
            advice.append(f"stop {_biggest(reading)[0].what}")
    if scene.want.need[device] is not None:
        levers = "its `memory` or max_model_len" if device == CPU else "its `memory`, gpu_memory or max_model_len"
        advice.append(f"lower {levers}")
        advice.append("take a smaller model")
    return advice or [f"free memory of {_place(device)}"]


def _place(device: Device) -> str:
    return "RAM" if device == CPU else f"GPU {device}"
