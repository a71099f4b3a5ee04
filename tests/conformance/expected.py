"""What each engine can't do: everything that is not named here must be `yes`, and what is named must still be so.

An engine that learns something fails the run too, until its line here goes: the table in the README stays true.
"""

from collections.abc import Mapping

from tests.conformance.outcome import Outcome

UNSUPPORTED, REFUSED, IGNORED, FAILS = Outcome.UNSUPPORTED, Outcome.REFUSED, Outcome.IGNORED, Outcome.FAILS

NO_CHAT = dict.fromkeys(
    (
        *("chat", "chat, 8 at once", "stream", "stream's framing", "usage in a stream", "completions", "tools"),
        *("completions with a suffix", "thinking", "reasoning_effort none", "keep_alive and num_ctx"),
        *("JSON schema", "n=2", "logprobs", "LangChain", "responses", "messages", "tokenize"),
        *("wrong value → 400", "context overflow → 400", "picture for a text model → 400"),
        *("cancelled stream stops", "cancelled request stops"),
    ),
    UNSUPPORTED,
)

CANNOT: Mapping[str, Mapping[str, Outcome]] = {
    "llama-server": {
        "completions with a suffix": IGNORED,
        "dimensions": IGNORED,
        "keep_alive and num_ctx": IGNORED,
    },
    "vllm": {"completions with a suffix": REFUSED, "keep_alive and num_ctx": IGNORED},
    "transformers": {
        "completions with a suffix": IGNORED,
        "reasoning_effort none": IGNORED,
        "JSON schema": IGNORED,
        "n=2": IGNORED,
        "logprobs": IGNORED,
        "embeddings": UNSUPPORTED,
        "dimensions": UNSUPPORTED,
        "rerank": UNSUPPORTED,
        "messages": UNSUPPORTED,
        "tokenize": UNSUPPORTED,
        "keep_alive and num_ctx": REFUSED,
        "context length in the list": IGNORED,
        "wrong value → 400": FAILS,
        "context overflow → 400": IGNORED,
        "picture for a text model → 400": IGNORED,
    },
    "infinity": NO_CHAT | {"context length in the list": IGNORED},
    "ollama": {"rerank": UNSUPPORTED, "tokenize": UNSUPPORTED},
    "ollama-v1": {
        "n=2": IGNORED,
        "rerank": UNSUPPORTED,
        "tokenize": UNSUPPORTED,
        "keep_alive and num_ctx": IGNORED,
        "context length in the list": IGNORED,
    },
    "tgi": {
        "completions with a suffix": REFUSED,
        "thinking": IGNORED,
        "reasoning_effort none": IGNORED,
        "embeddings": UNSUPPORTED,
        "dimensions": UNSUPPORTED,
        "rerank": UNSUPPORTED,
        "responses": UNSUPPORTED,
        "messages": UNSUPPORTED,
        "keep_alive and num_ctx": IGNORED,
    },
}


def expected(engine: str, row: str) -> Outcome:
    return CANNOT[engine].get(row, Outcome.YES)
