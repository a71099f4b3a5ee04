"""What was posted to real Ollama servers, posted to the stand-in: the same answers, but for what is listed.

Statuses, content types, members and types always; values too where the request determines them.
"""

from collections.abc import Iterator

import pytest

from tests.standins.captures import Captured, differences, parts, plain_files, post
from tests.standins.support import StandIn

VERSIONS = {"ollama": "0.33.0", "ollama-0.12.11": "0.12.11", "ollama-0.12.5": "0.12.5"}

# Documented differences: of these members only the type is compared.
NAMES = {"created_at", "id", "digest", "size", "expires_at", "modified_at", "parameter_size"}
DURATIONS = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
ALWAYS = NAMES | DURATIONS | {"embedding", "context", "top_logprobs"}
PROMPT = {"prompt_eval_count"}  # templates with tools or more are longer than the stand-in's
DIFFERENT = {
    "chat_history_tools": PROMPT,
    "generate_suffix": PROMPT,
    "tools_gguf_template": PROMPT,
    "tools_gguf_template_stream": PROMPT,
    "tools_go_template_stream": PROMPT,
    "tools_two_calls_stream": PROMPT,
    "tools_two_calls_equal_index_stream": PROMPT,
    "tools_without_id_and_index": PROMPT,
    "tags": {"models"},
    "ps_loaded": {"models"},
    "show": {"modelfile", "template", "parameters", "model_info", "tensors"},
    "show_template_in_gguf": {"modelfile", "template", "model_info", "tensors", "capabilities"},
    "err_ctx_long_prompt_gguf_template": {"error"},  # the number of tokens in it
    "embed": {"embeddings"},
    "embed_dimensions": {"embeddings"},
    "embed_on_chat_model": {"embeddings"},
}
NOT_REPLAYED = {
    "err_queue_full": "needs a full queue: test_ollama_own.py",
    "err_crash_nonstream": "the runner is killed: test_faults.py",
    "midstream_error_chat": "the runner is killed: test_faults.py",
    "ctx_long_history": "the request is shortened in the file",
    "embed_legacy": "the vector is cut in the file",
}


def _cases() -> dict[str, Captured]:
    found = {f"{folder}-{each.name}": each for folder in VERSIONS for each in plain_files(folder)}
    native = {name: each for name, each in found.items() if not each.path.startswith("/v1/")}  # its own /v1 is not here
    return {name: each for name, each in native.items() if each.name not in NOT_REPLAYED}


CASES = _cases()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StandIn]]:
    folder = tmp_path_factory.mktemp("ollama")
    started: dict[str, StandIn] = {}
    try:
        for name, version in VERSIONS.items():
            started[name] = StandIn("ollama", folder, ("--version", version, "--endless-delay", "0"))
        yield started
    finally:
        for each in started.values():
            each.stop()


@pytest.mark.parametrize("name", CASES)
def test_same_answer(name: str, servers: dict[str, StandIn]) -> None:
    captured = CASES[name]
    headers = {"content-type": "application/json"} if captured.method == "POST" else {}
    answer = post(servers[captured.where].base_url, captured, headers)
    assert answer.status == captured.status, answer.text
    kind = answer.headers.get("content-type", "")
    assert kind == captured.headers.get("content-type", "")
    loose = frozenset(ALWAYS | DIFFERENT.get(captured.name, set()))
    if captured.text is not None:
        assert differences(parts(captured.text, kind), parts(answer.text, kind), loose) == []
