"""The official clients, `text-generation` and `ollama` from PyPI, talk to the stand-ins as to the real programs."""

import gc
import warnings
from collections.abc import Iterator

import ollama
import pytest
import text_generation
from text_generation.errors import GenerationError, OverloadedError, ValidationError
from text_generation.types import Grammar, GrammarType

from tests.engines.speech import TEXT
from tests.standins.support import StandIn

pytestmark = pytest.mark.slow

WORDS = len(TEXT.split(" "))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather by city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# text-generation calls pydantic's old names
old_pydantic = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """These clients leave sockets for the collector, whose warning would fail whatever test runs when it comes."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module", params=["3.3.6-dev0", "2.3.1-dev0", "2.0.4"])
def tgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn("tgi", tmp_path_factory.mktemp("tgi"), ("--version", request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn("ollama", tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: StandIn) -> Iterator[ollama.Client]:
    one = ollama.Client(server.base_url, trust_env=False)
    yield one
    one._client.close()


@pytest.fixture(scope="module")
def hf(tgi: StandIn) -> text_generation.Client:
    return text_generation.Client(tgi.base_url)


def chat(client: ollama.Client, model: str, text: str = "hi", **more: object) -> ollama.ChatResponse:
    return client.chat(model, [{"role": "user", "content": text}], **more)


@old_pydantic
def test_tgi_generates(hf: text_generation.Client) -> None:
    answer = hf.generate("Hello", max_new_tokens=50, decoder_input_details=True)
    assert answer.generated_text == TEXT
    assert answer.details.finish_reason == "eos_token"
    assert answer.details.generated_tokens == WORDS + 1
    assert answer.details.prefill[0].text == "<s>"


@old_pydantic
def test_tgi_streams(hf: text_generation.Client) -> None:
    events = list(hf.generate_stream("Hello", max_new_tokens=5, top_n_tokens=2))
    assert "".join(event.token.text for event in events) == "Once upon a time two"
    assert [event.details is None for event in events] == [True] * 4 + [False]
    assert events[-1].details is not None
    assert events[-1].details.finish_reason == "length"
    assert events[-1].top_tokens is not None


@old_pydantic
async def test_tgi_streams_to_the_async_client(tgi: StandIn) -> None:
    client = text_generation.AsyncClient(tgi.base_url)
    events = [event async for event in client.generate_stream("Hello", max_new_tokens=50)]
    assert events[-1].generated_text == TEXT
    assert (await client.generate("Hello", max_new_tokens=3)).generated_text == "Once upon a"


@old_pydantic
def test_tgi_obeys_a_grammar(hf: text_generation.Client) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}
    grammar = Grammar(type=GrammarType.Json, value=schema)
    assert hf.generate("Hello", max_new_tokens=90, grammar=grammar).generated_text == '{"city": "Bern", "n": 1}'


@old_pydantic
@pytest.mark.parametrize(
    ("prompt", "more", "error"),
    [
        ("hi", {"stop_sequences": list("abcde")}, ValidationError),
        ('@@{"fail_prefill": "CUDA out of memory"}@@', {}, GenerationError),
    ],
)
def test_tgi_errors(hf: text_generation.Client, prompt: str, more: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        hf.generate(prompt, **more)
    with pytest.raises(error):
        list(hf.generate_stream(prompt, **more))


@old_pydantic
def test_tgi_is_overloaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    with StandIn("tgi", tmp_path_factory.mktemp("busy"), ("--max-concurrent", "1")) as busy:
        client = text_generation.Client(busy.base_url)
        stream = client.generate_stream("hi forever", max_new_tokens=4000)
        next(stream)
        with pytest.raises(OverloadedError):
            client.generate("hi")
        stream.close()


@old_pydantic
def test_tgi_chats(hf: text_generation.Client) -> None:
    answer = hf.chat([text_generation.types.Message(role="user", content="hi")], max_tokens=40)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage["completion_tokens"] == WORDS + 1


def test_ollama_chats(client: ollama.Client) -> None:
    answer = chat(client, "tiny")
    assert answer.message.content == TEXT
    assert (answer.done_reason, answer.eval_count, answer.prompt_eval_count) == ("stop", WORDS + 1, 22)


def test_ollama_streams(client: ollama.Client) -> None:
    lines = list(chat(client, "tiny", stream=True, options={"num_predict": 4}))
    assert "".join(line.message.content for line in lines) == "Once upon a time"
    assert [line.done for line in lines] == [False] * 4 + [True]
    assert lines[-1].done_reason == "length"


@pytest.mark.parametrize("model", ["helper", "jhelper"])
def test_ollama_calls_a_tool(client: ollama.Client, model: str) -> None:
    answer = chat(client, model, tools=[WEATHER])
    assert answer.message.tool_calls is not None
    assert answer.message.tool_calls[0].function.arguments == {"city": "Bern"}
    told = [{"role": "user", "content": "hi"}, answer.message, {"role": "tool", "content": "12", "tool_name": "x"}]
    assert client.chat(model, told, tools=[WEATHER]).message.content == TEXT


def test_ollama_thinks(client: ollama.Client) -> None:
    answer = chat(client, "jthink", think="high")
    assert (answer.message.thinking, answer.message.content) == ("Let me ponder colours\n", "Blue it is .")
    assert chat(client, "jthink", think=False).message.thinking is None


def test_ollama_obeys_a_format(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert chat(client, "tiny", format=schema).message.content == '{"city": "Bern"}'


def test_ollama_sees_a_picture(client: ollama.Client) -> None:
    message = {"role": "user", "content": "what?", "images": [b"\x89PNG\r\n\x1a\n123"]}
    assert client.chat("gvision", [message]).message.content == "A png picture of 11 bytes ."


def test_ollama_generates(client: ollama.Client) -> None:
    assert client.generate("tiny", "hi", raw=True).response == TEXT
    parts = list(client.generate("ginsert", "def f(", suffix="x", stream=True, options={"num_predict": 2}))
    assert "".join(part.response for part in parts) == "Once upon"
    assert parts[-1].context


def test_ollama_embeds(client: ollama.Client) -> None:
    answer = client.embed("embed", ["a", "b", "a"])
    assert [len(vector) for vector in answer.embeddings] == [64, 64, 64]
    assert answer.embeddings[0] == answer.embeddings[2] != answer.embeddings[1]
    assert abs(sum(each * each for each in answer.embeddings[0]) - 1) < 1e-6
    assert answer.prompt_eval_count == 6
    assert len(client.embeddings("embed", "a").embedding) == 64


def test_ollama_lists(client: ollama.Client) -> None:
    assert "helper:latest" in {model.model for model in client.list().models}
    assert client.show("jhelper").capabilities == ["completion", "tools"]
    chat(client, "tiny", options={"num_ctx": 1024})
    loaded = {model.model: model.context_length for model in client.ps().models}
    assert loaded["tiny:latest"] == 1024


@pytest.mark.parametrize(
    ("model", "more", "status", "words"),
    [
        ("nope", {}, 404, "model 'nope' not found"),
        ("tiny", {"tools": [WEATHER]}, 400, "does not support tools"),
        ("tiny", {"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        ("jtools", {"tools": [WEATHER], "options": {"num_predict": 2}}, 500, "invalid tool call arguments"),
    ],
)
def test_ollama_errors(client: ollama.Client, model: str, more: dict[str, object], status: int, words: str) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            list(chat(client, model, stream=stream, **more))
        assert caught.value.status_code == status


def test_ollama_fails_in_the_middle(client: ollama.Client) -> None:
    lines = iter(chat(client, "tiny", '@@{"fail_at": 3}@@', stream=True))
    assert [next(lines).message.content for _ in range(3)] == ["Once", " upon", " a"]
    with pytest.raises(ollama.ResponseError, match="unexpected EOF"):
        next(lines)
