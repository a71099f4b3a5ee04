"""What each engine can't do: everything that is not named here must be `yes`, and what is named must still be so.

An engine that learns something fails the run too, until its line here goes: the table in the README stays true.
"""

from collections.abc import Mapping

from tests.conformance.outcome import Outcome

UNSUPPORTED, IGNORED, FAILS = Outcome.UNSUPPORTED, Outcome.IGNORED, Outcome.FAILS

NO_CHAT = dict.fromkeys(
    (
        *("chat", "chat, 8 at once", "stream", "stream's framing", "usage in a stream", "completions", "tools"),
        *("JSON schema", "n=2", "logprobs", "LangChain", "responses", "messages", "tokenize"),
        *("wrong value → 400", "context overflow → 400", "cancelled stream stops", "cancelled request stops"),
    ),
    UNSUPPORTED,
)

CANNOT: Mapping[str, Mapping[str, Outcome]] = {
    "llama-server": {},
    "vllm": {},
    "transformers": {
        "JSON schema": IGNORED,
        "n=2": IGNORED,
        "logprobs": IGNORED,
        "embeddings": UNSUPPORTED,
        "rerank": UNSUPPORTED,
        "messages": UNSUPPORTED,
        "tokenize": UNSUPPORTED,
        "wrong value → 400": FAILS,
        "context overflow → 400": IGNORED,
        "cancelled request stops": IGNORED,
    },
    "infinity": NO_CHAT,
    "ollama": {"rerank": UNSUPPORTED, "tokenize": UNSUPPORTED},
    "tgi": {},
    "ollama-v1": {"n=2": IGNORED, "rerank": UNSUPPORTED, "tokenize": UNSUPPORTED},
}


def expected(engine: str, row: str) -> Outcome:
    return CANNOT[engine].get(row, Outcome.YES)
