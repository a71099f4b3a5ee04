"""Captured exchanges with the real programs, read from `answers/`, and their comparison with a stand-in's answers.

Whole files hold one answer with its headers (chunk framing may be in it); survey files hold many, shortened. Requests
that were shortened can't be replayed and are left out. Pure but for reading the files and posting one request.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.engines.process import PATIENCE

ANSWERS = Path(__file__).parent / "answers"
_CUT = ("…", "\n...")
_FRAME = re.compile(r"^[0-9A-Fa-f]{1,5}\r?$")


@dataclass(frozen=True, slots=True)
class Captured:
    """One request and what the real program answered; `headers` is empty for surveys, `text` None where shortened."""

    name: str
    where: str  # the port or the name of the server that answered
    method: str
    path: str
    request_headers: dict[str, str]
    body: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def _answered(name: str, lines: list[str], request: tuple[str, str, str, dict[str, str], str]) -> Captured | None:
    where, method, path, headers, body = request
    at = next((at for at, line in enumerate(lines) if line.startswith("HTTP/1.1 ")), None)
    if at is None or any(cut in body for cut in _CUT):
        return None
    end = lines.index("", at) if "" in lines[at:] else len(lines)
    found = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in lines[at + 1 : end])
    answered = {key.lower(): value for key, value in found.items()}
    text: str | None = "\n".join(lines[end + 1 :])
    if answered.get("transfer-encoding") == "chunked":
        text = "\n".join(line for line in lines[end + 1 :] if not _FRAME.match(line))
    shown = None if any(cut in (text or "") for cut in _CUT) else text
    return Captured(name, where, method, path, headers, body, int(lines[at].split()[1]), answered, shown)


def curl_files(folder: str) -> Iterator[Captured]:
    """Files whose request is written as a curl command."""
    for file in sorted((ANSWERS / folder).glob("*.txt")):
        lines = file.read_text().split("\n")
        command = next((line for line in lines if line.startswith("# curl ")), None)
        if command is None:
            continue
        words, _, body = command.removeprefix("# curl -X ").partition(" -d ")
        head, *given = words.split(" -H ")
        method, url = head.split()
        headers = dict(each.split(": ", 1) for each in given)
        split = urlsplit(url)
        captured = _answered(file.stem, lines, (str(split.port), method, split.path, headers, body))
        if captured is not None:
            yield captured


def plain_files(folder: str) -> Iterator[Captured]:
    """Files whose first line is `# METHOD path  [Header: value]  body`."""
    for file in sorted((ANSWERS / folder).glob("*.txt")):
        lines = file.read_text().split("\n")
        words = lines[0].removeprefix("# ").split("  ")
        if not re.match(r"(GET|HEAD|POST) /", words[0]):
            continue
        method, path = words[0].split()
        headers = dict(word.split(": ", 1) for word in words[1:] if re.match(r"[A-Z][a-z]+: ", word))
        body = next((word for word in words[1:] if word.startswith("{")), "")
        if body:
            body = lines[0][lines[0].index("  {") + 2 :]
        captured = _answered(file.stem, lines, (folder, method, path, headers, body))
        if captured is not None:
            yield captured


def surveys(folder: str) -> Iterator[Captured]:
    for file in sorted((ANSWERS / folder).glob("survey_*.txt")):
        lines = file.read_text().split("\n")[1:]
        names: Counter[str] = Counter()
        for at in range(0, len(lines) - 2, 3):
            name, where = re.fullmatch(r"(\S+) \[(.*)\]", lines[at]).groups()  # type: ignore[union-attr]
            method, path, body = (*lines[at + 1].strip().split(" ", 2), "")[:3]
            status, _, text = lines[at + 2].strip().partition(" ")
            names[name] += 1
            if "…" not in body:
                name += f" {names[name]}" if names[name] > 1 else ""
                shown = None if "…" in text or text.startswith("data:") else text
                yield Captured(name, where, method, path, {}, body.strip(), int(status), {}, shown)


def post(base_url: str, captured: Captured, headers: Mapping[str, str]) -> Answer:
    """The stand-in's answer to the captured request; blocks."""
    split = urlsplit(base_url)
    connection = HTTPConnection(str(split.hostname), split.port, timeout=PATIENCE)
    sent = {**headers, **captured.request_headers}
    connection.putrequest(captured.method, captured.path, skip_host="Host" in sent)
    for name, value in sent.items():
        connection.putheader(name, value)
    body = captured.body.encode()
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    response: HTTPResponse = connection.getresponse()
    try:
        text = response.read().decode()
    finally:
        connection.close()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)


def parts(text: str, kind: str) -> list[Any]:
    """A body as the values it holds: events, lines, one JSON value, or the bare text."""
    if kind.startswith("text/event-stream"):
        lines = [line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]
    if kind.startswith("application/x-ndjson"):
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    if kind.startswith("application/json") and text.strip():
        return [json.loads(text)]
    return [text.strip()]


def differences(real: Any, made: Any, loose: frozenset[str], path: str = "") -> list[str]:
    """Where two values differ: other members, types or values.

    Of members named in `loose` only the type counts, and in a list of objects the members of the first.
    """
    name = re.sub(r"(\[\d+\])+$", "", path.rpartition(".")[2])
    if name in loose and type(real) is type(made) and real and made and not path.endswith("]"):
        first, other = (real[0], made[0]) if isinstance(real, list) else (None, None)
        same = not isinstance(first, dict) or (isinstance(other, dict) and first.keys() == other.keys())
        return [] if same else [f"{path}[0]: {first}, not {other}"]
    if isinstance(real, dict) and isinstance(made, dict):
        found = [f"{path}: members {sorted(real.keys() ^ made.keys())}"] if real.keys() != made.keys() else []
        for key in real.keys() & made.keys():
            found += differences(real[key], made[key], loose, f"{path}.{key}")
        return found
    if isinstance(real, list) and isinstance(made, list):
        found = [f"{path}: {len(real)} items, not {len(made)}"] if len(real) != len(made) else []
        for at, (left, right) in enumerate(zip(real, made, strict=False)):
            found += differences(left, right, loose, f"{path}[{at}]")
        return found
    if type(real) is not type(made) and not {type(real), type(made)} <= {int, float}:
        return [f"{path}: {real!r}, not {made!r}"]
    return [] if real == made or name in loose else [f"{path}: {real!r}, not {made!r}"]
