"""An engine whose program isn't there, or that wants a key, through a real launcher: installed where that is allowed,
or given up with words that help."""

import sys
import zipfile
from pathlib import Path

import pytest

from tests.launchers.support import Launcher, spec

STANDIN = Path(__file__).parent / "standins" / "engine.py"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package called vllm, whose program is the stand-in, and which is all that pip knows."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    code = (
        "import runpy, sys\n\ndef main():\n"
        f"    sys.argv = [sys.argv[0], *sys.argv[2:]]\n    runpy.run_path({str(STANDIN)!r}, run_name='__main__')\n"
    )
    with zipfile.ZipFile(folder / "vllm-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("illm_test_vllm.py", code)
        wheel.writestr("vllm-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n")
        kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("vllm-9.9.dist-info/WHEEL", kind)
        wheel.writestr("vllm-9.9.dist-info/entry_points.txt", "[console_scripts]\nvllm = illm_test_vllm:main\n")
        wheel.writestr("vllm-9.9.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # where no vLLM is
    return folder


@pytest.mark.slow
def test_with_auto_install_an_engine_is_installed_once_beside_the_launchers_own_environment(wheels: Path) -> None:
    if (Path(sys.executable).with_name("vllm")).exists():
        pytest.skip("vLLM is installed beside this Python")
    with Launcher(spec("coder", kind="vllm", command=[], start_timeout=60.0), auto_install=True) as launcher:
        with launcher.wanted("coder") as events:
            events.until("phase", where=lambda event: event["phase"].startswith("installing vLLM"))
            assert launcher.row("coder")["pid"] is None
            while (event := events.next())["event"] in ("ping", "phase"):
                pass
            assert event["event"] == "ready", event
        environment = launcher.folder / "environments" / "vllm"
        assert f"{environment}/bin/vllm" in launcher.client.get("/engines/coder/logs").text
        launcher.stop("coder")
        (wheels / "vllm-9.9-py3-none-any.whl").unlink()
        with launcher.wanted("coder") as events:
            events.until("ready")
            assert not [event for event in events.seen if str(event.get("phase")).startswith("installing")]


def test_a_missing_programs_advice_says_where_each_way_out_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with (
        Launcher(spec("served", kind="llamacpp", command=[])) as launcher,
        launcher.wanted("served") as events,
    ):
        event = events.until("failed", "ready")
        if event["event"] == "ready":
            pytest.skip("llama-server is installed here")
        assert "Among a settings file's `engines` it can also have a `command`" in event["message"]


@pytest.mark.parametrize(("key", "says"), [(None, "it asks for a key; set its `api_key`"), ("other", "it refuses its")])
@pytest.mark.parametrize("health", [None, "/health"])
def test_an_engine_that_wants_a_key_is_given_up_and_lets_others_start(
    key: str | None, says: str, health: str | None
) -> None:
    locked = spec("locked", "--key", "sk-right", gpus=["0"], memory=1, api_key=key, health=health)
    with Launcher(locked, spec("next", gpus=["0"], memory=1), constants={"launchers.start.LOCKED": 0.1}) as launcher:
        with launcher.wanted("locked") as events:
            failed = events.until("failed")
        assert f"answers 401: {says}" in failed["message"]
        assert "sk-right" not in failed["message"].splitlines()[0]
        assert launcher.row("locked")["state"] == "fatal"
        assert launcher.engines_alive() == []
        with launcher.wanted("next") as events:
            events.until("ready")


def test_an_engine_that_is_given_its_key_is_ready() -> None:
    engine = spec("coder", "--key", "sk-right", api_key="sk-right")
    with Launcher(engine) as launcher, launcher.wanted("coder") as events:
        events.until("ready")
