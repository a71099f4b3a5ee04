"""What the stand-ins can be made to do wrong, and that they see who leaves. Both programs, the same directives."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.engines.process import PATIENCE, wait_until
from tests.standins.support import StandIn, asking

CALLS = {
    "tgi": ("/generate_stream", lambda prompt: {"inputs": prompt, "parameters": {"details": True}}),
    "ollama": ("/api/chat", lambda prompt: {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}),
}


@pytest.fixture(scope="module", params=["tgi", "ollama"])
def standin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(request.param, tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(standin: StandIn) -> None:
    standin.reset()


class Call:
    """One streamed request: the lines that came, and how it ended."""

    def __init__(self, standin: StandIn, directive: str) -> None:
        path, body = CALLS[standin.kind]
        self.lines: list[str] = []
        self.error: httpx.HTTPError | None = None
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
            try:
                with client.stream("POST", standin.base_url + path, json=body(directive)) as response:
                    self.status = response.status_code
                    self.lines.extend(line for line in response.iter_lines() if line)
            except httpx.HTTPError as error:
                self.error = error


def told(**directive: object) -> str:
    return f"@@{json.dumps(directive)}@@"


def test_reset(standin: StandIn) -> None:
    call = Call(standin, told(reset_at=3))
    assert isinstance(call.error, httpx.ReadError)
    assert standin.closed() == []


def test_reset_before_anything(standin: StandIn) -> None:
    call = Call(standin, told(reset_at=0))
    assert isinstance(call.error, httpx.ReadError)
    assert call.lines == []


def test_cut(standin: StandIn) -> None:
    call = Call(standin, told(cut_at=3))
    assert isinstance(call.error, httpx.RemoteProtocolError)
    assert len(call.lines) == 3
    assert standin.closed() == []


def test_stall_and_the_client_leaves(standin: StandIn) -> None:
    path, body = CALLS[standin.kind]
    with (
        httpx.Client(timeout=PATIENCE, trust_env=False) as client,
        client.stream("POST", standin.base_url + path, json=body(told(stall_at=2))) as response,
    ):
        lines = (line for line in response.iter_lines() if line)
        assert len([next(lines) for _ in range(2)]) == 2
    assert standin.wait_closed()[0]["tokens"] == 2
    assert standin.running() == []


def test_garbage(standin: StandIn) -> None:
    call = Call(standin, told(text="a b c", garbage_at=1))
    broken = [line for line in call.lines if line.rstrip().endswith(":")]
    assert len(broken) == 1
    assert call.error is None


def test_error_in_the_middle(standin: StandIn) -> None:
    call = Call(standin, told(fail_at=2, fail="index out of range"))
    assert len(call.lines) == 3
    assert "index out of range" in json.loads(call.lines[-1].removeprefix("data:"))["error"]


def test_engine_goes_quiet(standin: StandIn) -> None:
    call = Call(standin, told(vanish_at=2))
    assert call.error is None
    assert ("error_type" in call.lines[-1]) == (standin.kind == "tgi")
    assert '"done":true' not in call.lines[-1]


def test_pieces(standin: StandIn) -> None:
    whole, cut = Call(standin, told(text="one two")), Call(standin, told(text="one two", pieces=1))
    assert len(whole.lines) == len(cut.lines) > 2


def test_endless_answer_stops_when_the_client_leaves(standin: StandIn) -> None:
    path, body = CALLS[standin.kind]
    with (
        httpx.Client(timeout=PATIENCE, trust_env=False) as client,
        client.stream("POST", standin.base_url + path, json=body("go on forever")) as response,
    ):
        lines = response.iter_lines()
        seen = [next(lines) for _ in range(20)]
    assert any(" da" in line for line in seen)
    gone = standin.wait_closed()[0]
    assert gone["path"] == path
    assert gone["head_sent"]
    assert 8 <= gone["tokens"] < 1000
    assert standin.running() == []


def test_a_client_that_waits_for_a_whole_answer_leaves(standin: StandIn) -> None:
    kind = standin.kind
    path, body = ("/generate", {"inputs": "forever"}) if kind == "tgi" else CALLS["ollama"]
    sent = body if isinstance(body, dict) else body("forever") | {"stream": False}
    with asking(standin.base_url + path, sent):
        standin.wait_tokens()
    gone = standin.wait_closed()[0]
    assert not gone["head_sent"]
    assert gone["tokens"] > 0


@pytest.mark.parametrize(("fault", "error"), [("garbage_at", ValueError), ("cut_at", httpx.RemoteProtocolError)])
def test_whole_answers_break_too(standin: StandIn, fault: str, error: type[Exception]) -> None:
    standin.fault({fault: 1}, times=2)
    kind = standin.kind
    path, sent = (
        ("/generate", {"inputs": "hi"}) if kind == "tgi" else ("/api/generate", {"model": "tiny", "prompt": "x"})
    )
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        for _ in range(2):
            with pytest.raises(error):
                client.post(standin.base_url + path, json={**sent, "stream": False}).json()
        assert client.post(standin.base_url + path, json={**sent, "stream": False}).is_success


def test_queued_answer_of_another_program(standin: StandIn) -> None:
    path, body = CALLS[standin.kind]
    standin.fault({"answer": {"status": 502, "body": "<h1>Bad Gateway</h1>"}}, path=path)
    answers = [
        httpx.post(standin.base_url + path, json=body("hi"), timeout=PATIENCE, trust_env=False) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [502, 200]
    assert answers[0].headers["content-type"] == "text/html"


def test_what_arrived_is_kept(standin: StandIn) -> None:
    path, body = CALLS[standin.kind]
    httpx.post(standin.base_url + path, json=body("hi"), headers={"X-Mark": "1"}, timeout=PATIENCE, trust_env=False)
    (seen,) = standin.requests(path)
    assert seen["body"] == body("hi")
    assert seen["headers"]["x-mark"] == "1"


@pytest.mark.parametrize("kind", CALLS)
def test_the_whole_program_dies(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, body = CALLS[kind]
    with StandIn(kind, tmp_path_factory.mktemp("dies")) as standin:
        with pytest.raises(httpx.TransportError):
            httpx.post(standin.base_url + path, json=body(told(exit_at=2)), timeout=PATIENCE, trust_env=False)
        wait_until(lambda: standin.returncode is not None, "it ended")


def test_crash_of_ollamas_runner(tmp_path_factory: pytest.TempPathFactory) -> None:
    with StandIn("ollama", tmp_path_factory.mktemp("crash")) as standin:
        body = CALLS["ollama"][1](told(fail_at=2)) | {"model": "loop"}
        whole = httpx.post(
            standin.base_url + "/api/chat", json=body | {"stream": False}, timeout=PATIENCE, trust_env=False
        )
        midway = httpx.post(standin.base_url + "/api/chat", json=body, timeout=PATIENCE, trust_env=False)
    error = {"error": "an error was encountered while running the model: unexpected EOF"}
    assert (whole.status_code, whole.json()) == (500, error)
    assert (midway.status_code, json.loads(midway.text.split("\n")[-2])) == (200, error)
