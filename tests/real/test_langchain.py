"""langchain-openai through the gateway, as an application has it."""

from typing import Any

import pytest
import tiktoken
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess
from tests.engines.speech import TEXT, TOOL_NAME
from tests.real.support import EMBED, HI_TOKENS, PUBLIC, SAID, TOOL, WORDS
from tests.real.test_apis import close, straight

KEY = SecretStr("unused")


@pytest.fixture
def model(served: Gateway) -> ChatOpenAI:
    return ChatOpenAI(model=PUBLIC, base_url=served.v1, api_key=KEY, max_retries=0, timeout=PATIENCE)


def test_invoke(model: ChatOpenAI) -> None:
    answer = model.invoke("hi")
    assert answer.content == TEXT
    usage = answer.usage_metadata
    assert usage
    assert (usage["input_tokens"], usage["output_tokens"]) == (HI_TOKENS, SAID)
    assert (answer.response_metadata["model_name"], answer.response_metadata["finish_reason"]) == (PUBLIC, "stop")


async def test_ainvoke_with_a_limit(model: ChatOpenAI) -> None:
    answer = await model.bind(max_tokens=2).ainvoke("hi")
    assert (answer.content, answer.response_metadata["finish_reason"]) == ("Once upon", "length")


def test_stream_with_usage(served: Gateway) -> None:
    model = ChatOpenAI(
        model=PUBLIC, base_url=served.v1, api_key=KEY, max_retries=0, timeout=PATIENCE, stream_usage=True
    )
    chunks = list(model.stream("hi"))
    assert [chunk.content for chunk in chunks if chunk.content] == list(WORDS)
    usages = [chunk.usage_metadata for chunk in chunks if isinstance(chunk, AIMessageChunk) and chunk.usage_metadata]
    assert [(usage["input_tokens"], usage["output_tokens"]) for usage in usages] == [(HI_TOKENS, SAID)]


def test_bound_tools(model: ChatOpenAI) -> None:
    bound = model.bind_tools([TOOL])
    asked = bound.invoke("hi")
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == (TOOL_NAME, {"city": "Bern"})
    after = bound.invoke([("user", "hi"), asked, ToolMessage("sunny", tool_call_id=call["id"])])
    assert (after.content, after.tool_calls) == (TEXT, [])
    streamed: Any = None
    for chunk in bound.stream("hi"):
        streamed = chunk if streamed is None else streamed + chunk
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [(TOOL_NAME, {"city": "Bern"})]


@pytest.fixture
def byte_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's vocabulary, which tiktoken would download, replaced by one token a byte."""
    bytes_only = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([at]): at for at in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: bytes_only)


def test_embeddings_as_token_ids(served: Gateway, llama_embed: ServerProcess, byte_tokens: None) -> None:
    """Its default: texts go as lists of numbers."""
    client = OpenAIEmbeddings(model=EMBED, base_url=served.v1, api_key=KEY, max_retries=0)
    texts = ["hi", "a stone bridge"]
    wanted = straight(llama_embed, [list(text.encode()) for text in texts])
    assert all(map(close, client.embed_documents(texts), wanted))
    assert close(client.embed_query("hi"), wanted[0])


def test_embeddings_as_texts(served: Gateway, llama_embed: ServerProcess) -> None:
    client = OpenAIEmbeddings(
        model=EMBED, base_url=served.v1, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
    )
    texts = ["hi", "a stone bridge"]
    assert all(map(close, client.embed_documents(texts), straight(llama_embed, texts)))
