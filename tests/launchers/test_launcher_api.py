"""The control API itself: who may ask, what it answers, logs, slow readers; and that a folder has one launcher."""

import json
import os
import socket
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engines.process import PATIENCE, free_port, wait_until
from tests.launchers.support import ROOT, Events, Launcher, spec, vllm


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_socket_is_its_owners_alone() -> None:
    with Launcher() as launcher:
        assert stat.S_IMODE((launcher.state / "launcher.sock").stat().st_mode) == 0o600
        assert stat.S_IMODE(launcher.state.stat().st_mode) == 0o700
        about = launcher.client.get("/").json()
        assert (about["launcher"], about["pid"], about["orphans"]) == ("illm", launcher.process.pid, "kill")
        cpu = next(device for device in about["devices"] if device["device"] == "cpu")
        assert 0 < cpu["free"] <= cpu["total"]


def test_over_tcp_nobody_is_answered_without_the_key() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with Launcher(spec("a"), listen=address, api_key="sk-launcher") as launcher:
        assert not (launcher.state / "launcher.sock").exists()
        for path in ("/", "/engines", "/engines/a/logs", "/events", "/nowhere"):
            for headers in ({}, {"authorization": "Bearer sk-other"}, {"authorization": "sk-launcher"}):
                request = launcher.client.build_request("GET", path)
                del request.headers["authorization"]
                request.headers.update(headers)
                answer = launcher.client.send(request)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with launcher.wanted("a") as lease:
            lease.until("ready")
        assert "sk-launcher" not in launcher.log.read_text()


def test_wrong_questions_get_the_usual_envelope() -> None:
    with Launcher(spec("a")) as launcher:
        wrong = {
            ("GET", "/nowhere"): (404, "unknown_url"),
            ("GET", "/engines/b"): (404, "engine_not_found"),
            ("GET", "/engines/b/logs"): (404, "engine_not_found"),
            ("POST", "/engines/b/stop"): (404, "engine_not_found"),
            ("GET", "/engines/a/logs?tail=lots"): (400, "invalid_value"),
            ("GET", "/engines/a/logs?tail=%C2%B2"): (400, "invalid_value"),
            ("GET", "/engines/a/logs?tail=" + "9" * 5000): (400, "invalid_value"),
            ("GET", "/engines/a/ensure"): (405, "method_not_allowed"),
            ("DELETE", "/engines/a"): (405, "method_not_allowed"),
        }
        for (method, path), expected in wrong.items():
            answer = launcher.client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == expected
            assert answer.json()["error"]["message"]
        assert "Traceback" not in launcher.log.read_text()


def test_logs_are_had_by_their_end_and_followed() -> None:
    with Launcher(spec("a")) as launcher:
        assert launcher.client.get("/engines/a/logs").text == ""
        with launcher.client.stream("GET", "/engines/a/logs", params={"follow": 1}) as answer:
            assert answer.headers["content-type"].startswith("text/plain")
            with launcher.wanted("a", "start") as events:
                events.until("ready")
            lines = answer.iter_lines()
            assert next(lines).startswith("=== illm starts ")
            assert next(lines) == "stand-in engine for a, key none"
            while next(lines) != "loaded":
                pass
            assert launcher.client.get("/engines/a/logs", params={"tail": 1}).text == "loaded\n"
            launcher.write()
            launcher.reload()
            assert list(lines) == []  # the engine is gone, and with it the end of the answer


def test_whoever_follows_events_sees_all_that_happens() -> None:
    with Launcher(spec("a")) as launcher, launcher.client.stream("GET", "/events") as answer:
        events = Events(answer)
        assert [row["state"] for row in events.next()["engines"]] == ["stopped"]
        with launcher.wanted("a") as lease:
            lease.until("ready")
            row = events.until("engine", where=lambda event: event["engine"]["leases"] == 1)["engine"]
            assert row["state"] == "ready"
        events.until("engine", where=lambda event: event["engine"]["leases"] == 0)


def test_a_reader_that_never_reads_costs_nothing_and_holds_nobody_up() -> None:
    noise = (
        "import time\n"
        "for n in range(15000):\n"
        "    print(f'Loading safetensors checkpoint shards: {n % 100}% Completed | 1/2', flush=n % 300 == 0)\n"
        "    n % 300 or time.sleep(0.02)\n"
        "print('Starting vLLM server on', flush=True)\n"
        "time.sleep(600)\n"
    )
    with Launcher(vllm("noisy", command=["python3", "-c", noise])) as launcher, ExitStack() as stack:
        for _ in range(20):
            reader = stack.enter_context(socket.socket(socket.AF_UNIX))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(str(launcher.state / "launcher.sock"))
            reader.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        before = rss(launcher.process.pid)
        with launcher.wanted("noisy", "start") as events:  # one that doesn't read much either
            events.next()
            wait_until(lambda: launcher.row("noisy")["phase"] == "listening", "it has said it all")
            assert rss(launcher.process.pid) - before < 12 << 20
            launcher.stop("noisy")
            assert events.until("failed")["code"] == "engine_stopped"


def test_followers_do_not_hold_up_the_end() -> None:
    with Launcher(spec("a")) as launcher:
        with (
            launcher.client.stream("GET", "/events") as one,
            launcher.client.stream("GET", "/engines/a/logs", params={"follow": 1}),
        ):
            events = Events(one)
            events.next()
            assert launcher.client.post("/shutdown").status_code == 202
            wait_until(lambda: launcher.process.poll() is not None, "it has ended")
        assert launcher.process.returncode == 0
        assert "ERROR" not in launcher.log.read_text()


def test_a_second_launcher_on_a_folder_refuses_and_leaves_the_first_alone() -> None:
    with Launcher(spec("a")) as launcher:
        second = subprocess.run(launcher.command_line(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 2
        assert second.stderr == (
            f"illm launch: Another launcher (process {launcher.process.pid}) already runs with the state folder "
            f"{launcher.state}. Use that one, or stop it first.\n"
        )
        assert launcher.row("a")["state"] == "stopped"


@pytest.mark.parametrize("case", ["document", "folder", "listen", "engine"])
def test_what_it_cannot_start_with_is_said_in_words(case: str, tmp_path: Path) -> None:
    with Launcher() as launcher:
        document = json.loads(launcher.document.read_text())
    launcher.folder.mkdir()
    state: Path = launcher.state
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        if case == "document":
            document["engines"] = [{"name": "a"}]
        elif case == "folder":
            state.write_text("a file")
        elif case == "listen":
            document["launcher"]["listen"] = address
        else:
            document["engines"] = [spec("a") | {"kind": "vllm", "command": [], "mmproj": "/m.gguf"}]
        launcher.document.write_text(json.dumps(document))
        run = subprocess.run(launcher.command_line(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    expected = {
        "document": "The launcher and the settings don't understand one another",
        "folder": f"The state folder {state} can't be used",
        "listen": f"Can't listen on {address} (Address already in use). Change launcher.listen.",
        "engine": "a: vLLM has no option `mmproj`",
    }
    assert run.returncode == 2
    assert run.stderr.startswith(f"illm launch: {expected[case]}")
    assert "Traceback" not in run.stderr
    launcher.close()
