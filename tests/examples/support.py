"""How the examples are run: Python ones inside this process (their clients are loaded already), others as programs.

Also the two servers that no engine of these tests can be: one that transcribes, and one that has a picture. What an
example must print is said in the tests.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.engines.gateway import ROOT
from tests.engines.process import PATIENCE

EXAMPLES = ROOT / "docs" / "examples"
KEY = "sesame"  # the gateway wants it, so an example that sends none fails
CHAT, EMBED, SEEING, HEARING = "team/tiny", "tiny-embed", "team/seeing", "whisper"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC")
WAV = b"RIFF" + bytes(40)

Run = Callable[..., str]


def environment(root: str, key: str = KEY) -> dict[str, str]:
    """What a user sets so that any client asks the gateway; proxies of this machine stay out of it."""
    told = {"OPENAI_BASE_URL": f"{root}/v1", "OPENAI_API_KEY": key}
    told |= {"ANTHROPIC_BASE_URL": root, "ANTHROPIC_API_KEY": key}
    return told | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def run_python(
    name: str,
    words: tuple[str, ...],
    settings: Mapping[str, str],
    patch: pytest.MonkeyPatch,
    capture: pytest.CaptureFixture[str],
) -> str:
    """What the example prints when it is called with these words."""
    for variable, value in settings.items():
        patch.setenv(variable, value)
    patch.setattr(sys, "argv", [name, *words])
    capture.readouterr()
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capture.readouterr().out


def run_program(*command: str | Path, settings: Mapping[str, str], cwd: Path | None = None, text: str = "") -> str:
    """What the program prints; it must end well."""
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_shell(name: str, *words: str | Path, settings: Mapping[str, str]) -> str:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    return run_program(EXAMPLES / name, *words, settings=settings)


class Extras(BaseHTTPRequestHandler):
    """A picture under /pixel.png, and an engine that hears: it says which file it got, and how much of it."""

    def do_GET(self) -> None:
        if self.path == "/pixel.png":
            self._say(PNG, "image/png")
        else:
            self._say(json.dumps({"object": "list", "data": [{"id": HEARING, "object": "model"}]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        form = message_from_bytes(f"content-type: {self.headers['content-type']}\n\n".encode() + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.walk()}
        file = parts["file"]
        heard = file.get_payload(decode=True)
        assert isinstance(heard, bytes)
        self._say(json.dumps({"text": f"{len(heard)} bytes of {file.get_filename()}"}).encode())

    def _say(self, body: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
