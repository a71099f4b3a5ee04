"""The rows of the table: a name, and the check that fills its cells."""

from collections.abc import Callable, Mapping

from tests.conformance import answers, leaving, refusals
from tests.conformance.subjects import Subject

CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "chat": answers.chat,
    "chat, 8 at once": answers.chat_async,
    "stream": answers.stream,
    "stream's framing": answers.stream_framing,
    "usage in a stream": answers.usage,
    "completions": answers.completions,
    "completions with a suffix": answers.suffix,
    "tools": answers.tools,
    "thinking": answers.thinking,
    "reasoning_effort none": answers.no_thinking,
    "JSON schema": answers.json_schema,
    "n=2": answers.two_choices,
    "logprobs": answers.logprobs,
    "LangChain": answers.langchain,
    "embeddings": answers.embeddings,
    "dimensions": answers.dimensions,
    "rerank": answers.rerank,
    "responses": answers.responses,
    "messages": answers.messages,
    "tokenize": answers.tokenize,
    "keep_alive and num_ctx": answers.engine_options,
    "context length in the list": answers.entry,
    "unknown model → 404": refusals.unknown_model,
    "wrong value → 400": refusals.bad_value,
    "context overflow → 400": refusals.overflow,
    "picture for a text model → 400": refusals.picture,
    "browser (CORS)": refusals.preflight,
    "cancelled stream stops": leaving.cancel_stream,
    "cancelled request stops": leaving.cancel_plain,
}
