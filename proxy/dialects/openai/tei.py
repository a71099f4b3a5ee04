"""Rerank as Hugging Face's text-embeddings-inference speaks it, which is its own way.

The field's usual form (Jina, Cohere, vLLM, llama-server, Infinity) asks `{"query", "documents", "top_n"}` and answers
`{"results": [{"index", "relevance_score"}]}`; TEI asks `{"query", "texts"}` and answers a bare list of
`{"index", "score"}`. A client that sends `texts` speaks TEI already and gets TEI's list.

Pure: objects in, objects out. Not here: TEI's `/v1/embeddings`, which is OpenAI's, and its errors.
"""

from __future__ import annotations

from typing import Any, Final

from proxy.dialects.base import Target
from proxy.errors import ApiError, error
from proxy.wire import JsonObject

# TEI's own members, under the same name in both forms.
_SHARED: Final = ("raw_scores", "truncate", "truncation_direction")


def encode_rerank(body: JsonObject, target: Target) -> JsonObject:
    """The body for TEI's `/rerank`. Texts are never asked back: the request has them. Raises `ApiError`."""
    if _speaks_tei(body):
        return {name: value for name, value in body.items() if name not in ("model", "framework")}
    query = body.get("query")
    if not isinstance(query, str):
        raise _wrong("query", "must be a string")
    _top_n(body)
    shared = {name: body[name] for name in _SHARED if body.get(name) is not None}
    return {**target.options, "query": query, "texts": _texts(body), **shared}


def decode_rerank(reply: Any, asked: JsonObject, target: Target) -> Any:
    """TEI's answer in the form of the request `asked`: best first, cut to its `top_n`, with the documents if it
    wants them back. There is no `usage`, as TEI counts tokens in a header. Raises `upstream_invalid_response`."""
    if _speaks_tei(asked):
        return reply
    texts = _texts(asked)
    try:
        results = [_result(rank, texts, echo=bool(asked.get("return_documents"))) for rank in reply]
        results.sort(key=lambda result: (-result["relevance_score"], result["index"]))
    except (TypeError, KeyError, IndexError) as exc:
        raise error(
            "upstream_invalid_response",
            f"Backend '{target.backend}' answered a rerank request with something that is no ranking.",
        ) from exc
    return {"object": "list", "model": target.public, "results": results[: _top_n(asked)]}


def _result(rank: JsonObject, texts: list[str], *, echo: bool) -> JsonObject:
    index, score = rank["index"], rank["score"]
    if index < 0:
        raise IndexError(index)
    text = texts[index]
    return {"index": index, "relevance_score": score, **({"document": {"text": text}} if echo else {})}


def _speaks_tei(body: JsonObject) -> bool:
    return body.get("documents") is None and body.get("texts") is not None


def _texts(body: JsonObject) -> list[str]:
    documents = body.get("documents")
    if not isinstance(documents, list) or not documents:
        raise _wrong("documents", "must be a list of strings or of objects with `text`, and not empty")
    texts: list[str] = []
    for index, document in enumerate(documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise _wrong("documents", f"must hold texts; number {index} is none")
        texts.append(text)
    return texts


def _top_n(body: JsonObject) -> int | None:
    top_n = body.get("top_n")
    if top_n is None:
        return None
    if not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1:
        raise _wrong("top_n", "must be an integer of at least 1")
    return top_n


def _wrong(param: str, what: str) -> ApiError:
    return error("invalid_value", f"`{param}` {what}.", param=param)
