"""The records on disk and the lock of a state folder."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.ledger import Ledger, Locked, lock
from launchers.running import Record
from tests.engines.process import wait_until

ROOT = Path(__file__).parents[2]


def record(name: str) -> Record:
    return Record(
        name=name,
        token="t",
        epoch="e",
        guard_pid=1,
        guard_start="2",
        engine_pid=3,
        engine_start="4",
        orphans="adopt",
        host="127.0.0.1",
        port=5,
        model="m/ö",
        fingerprint="f",
        grace=1.5,
        cleanup=("docker", "rm"),
        started=6.5,
        log="/log",
        status="/status",
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    names = ["b", "a/../../x", "qwen2:7b"]
    for name in names:
        ledger.write(record(name))
    ledger.write(dataclasses.replace(record("b"), port=9))
    read = {one.name: one for one in Ledger(tmp_path / "runs").read()}
    assert read == {**{name: record(name) for name in names}, "b": dataclasses.replace(record("b"), port=9)}
    assert {file.parent for file in tmp_path.rglob("*.json")} == {tmp_path / "runs"}
    assert len(list((tmp_path / "runs").iterdir())) == 3
    ledger.remove("b")
    ledger.remove("b")
    assert "b" not in [one.name for one in ledger.read()]


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"name": "x"}', b"\xff\xfe", b'{"name": 1, "token": 2}'])
def test_garbage_is_left_out_and_said(tmp_path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(record("good"))
    (tmp_path / "bad.json").write_bytes(garbage)
    (tmp_path / "bad.json.new").write_bytes(b"a write that was cut off")
    (tmp_path / "one.status").write_bytes(b"{}")
    with caplog.at_level(logging.WARNING):
        assert ledger.read() == [record("good")]
    assert "bad.json is no record of an engine" in caplog.text


HOLDER = "import sys, pathlib, launchers.ledger as l; held = l.lock(pathlib.Path(sys.argv[1])); print(1); input()"


def test_a_folder_has_one_launcher_until_that_is_gone_however_it_ended(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-uc", HOLDER, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(Locked, match=rf"process {other.pid}\) already runs with the state folder {tmp_path}"):
            lock(tmp_path)
        other.send_signal(signal.SIGKILL)
    with lock(tmp_path) as held, pytest.raises(Locked, match=rf"process {os.getpid()}\)"):
        lock(tmp_path)
    held.close()
    lock(tmp_path).close()


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    held = lock(tmp_path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        held.close()
        wait_until(lambda: child.poll() is None, "the child runs")
        lock(tmp_path).close()
    finally:
        child.kill()
        child.wait()
