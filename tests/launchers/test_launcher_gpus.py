"""GPUs as a launcher minds them, measured through a stand-in of NVIDIA's library: which is which, who holds what."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchers.standins import nvml
from tests.launchers.support import Launcher, Row, spec

G = nvml.GiB
FIRST, SECOND = "GPU-bbbb2222-0000", "GPU-cccc3333-0000"
SOON = {"launchers.room.LOOK": 0.05, "launchers.room.COME_BACK": 0.3}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return nvml.build(tmp_path_factory.mktemp("nvml"))
    except nvml.NoCompiler as exc:
        pytest.skip(str(exc))


@pytest.fixture
def machine(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what two GPUs are like, for launchers that are started afterwards, and at any time."""
    state = tmp_path / "state"
    for name, value in nvml.environment(library, state).items():
        monkeypatch.setenv(name, value)

    def write(*processes: str, free: int = 23) -> None:
        rows = [f"gpu {24 * G} {free * G} {uuid} RTX 4090" for uuid in (FIRST, SECOND)]
        nvml.write(state, rows[0], *processes, rows[1])

    write()
    return write


def outcome(launcher: Launcher, name: str) -> Row:
    with launcher.wanted(name) as events:
        return events.until("ready", "failed")


@pytest.mark.parametrize("budget", [{"0": 4 * G}, {FIRST: 4 * G}, {FIRST[:10]: 4 * G}], ids=["number", "uuid", "part"])
@pytest.mark.parametrize("named", [["0"], [FIRST], []], ids=["number", "uuid", "first"])
def test_a_budget_holds_however_it_and_the_engine_name_the_gpu(
    machine: Callable[..., None], budget: dict[str, int], named: list[str]
) -> None:
    with Launcher(spec("a", gpus=named, memory=6 * G), constants=SOON, budget=budget) as launcher:
        failed = outcome(launcher, "a")
        assert failed["event"] == "failed"
        assert "a needs 6 GiB of GPU 0, where launcher.budget allows 4 GiB" in failed["message"]
        devices = launcher.client.get("/").json()["devices"]
        assert {row["device"]: row["budget"] for row in devices} == {"0": 4 * G, "1": None, "cpu": None}


def test_which_gpu_is_the_first_is_not_the_budgets_to_say(machine: Callable[..., None]) -> None:
    with Launcher(spec("a", memory=6 * G), constants=SOON, budget={"1": 4 * G}) as launcher:
        assert outcome(launcher, "a")["event"] == "ready"
        assert launcher.row("a")["memory"] == {"0": 6 * G}
    with Launcher(spec("a", gpus=[SECOND], memory=6 * G), constants=SOON, budget={"0": 4 * G}) as launcher:
        assert outcome(launcher, "a")["event"] == "ready"
        assert launcher.row("a")["memory"] == {"1": 6 * G}
