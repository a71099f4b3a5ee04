"""One gateway in front of three real llama-servers (chat, embeddings, rerank) for the tests that only ask; clients."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess
from tests.real.support import ALIAS, CHAT, EMBED, PUBLIC, RERANK

CONFIG = """
discovery: {{local: false}}
backends:
  chat: {{base_url: {chat}/v1}}
  embed: {{kind: llamacpp, base_url: {embed}}}
  rerank: {{base_url: {rerank}/}}
models:
  {public}: {{aliases: [{alias}], replicas: [{{backend: chat, model: {name}}}]}}
"""


@pytest.fixture(scope="session")
def served(
    llama_server: ServerProcess,
    llama_embed: ServerProcess,
    llama_rerank: ServerProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """The gateway; the engines behind it are the session's."""
    roots = {"chat": llama_server.base_url, "embed": llama_embed.base_url, "rerank": llama_rerank.base_url}
    config = CONFIG.format(**roots, public=PUBLIC, alias=ALIAS, name=CHAT)
    with Gateway(config, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway.wait_models(PUBLIC, EMBED, RERANK)


@pytest.fixture
def sdk(served: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.v1, api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
async def async_sdk(served: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=served.v1, api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        yield client
