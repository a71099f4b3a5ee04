"""Embeddings by `/api/embed`, or one by one by `/api/embeddings` where Ollama is older than 0.2.6.

Which of them a backend has is found out by the first request and remembered. Vectors leave in OpenAI's two
encodings; what an old server ignored (`dimensions`) or left out (unit length) is done here.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Generator, Sequence
from typing import Any, Final

from proxy.dialects.base import Answered, Ask, Learn, Reply, Steps, Target, Usage
from proxy.dialects.ollama.answer import usage
from proxy.dialects.ollama.errors import error_in, failure, is_missing_route
from proxy.dialects.ollama.members import embedding_members
from proxy.dialects.ollama.reply import unusable
from proxy.dialects.shared.openai_out import embedding_reply
from proxy.errors import ApiError, error
from proxy.wire import InvalidJson, JsonObject, dump, load_object

LEGACY: Final = "ollama.legacy_embeddings"  # the fact's name
_FORMATS: Final = ("float", "base64")

Vector = list[float]
Asking = Generator[Ask | Learn, Answered, tuple[list[Vector], int]]


def embed(body: JsonObject, target: Target) -> Steps:
    """The whole request. Raises `ApiError`."""
    texts = _input(body.get("input"))
    dimensions = _dimensions(body.get("dimensions"))
    encoding = body.get("encoding_format") or "float"
    if encoding not in _FORMATS:
        raise error("invalid_value", "`encoding_format` must be float or base64.", param="encoding_format")
    common = embedding_members(body, target)
    if target.facts.get(LEGACY):
        vectors, prompt = yield from _one_by_one(common, texts, target)
    else:
        whole = common | {"input": body["input"]} | ({} if dimensions is None else {"dimensions": dimensions})
        answer = yield Ask("/api/embed", dump(whole))
        if is_missing_route(answer):
            vectors, prompt = yield from _one_by_one(common, texts, target)
            yield Learn(LEGACY, True)
        else:
            vectors, prompt = _vectors(answer, len(texts), target)
    fitted = [_fitted(vector, dimensions) for vector in vectors]
    encoded: list[Any] = [_base64(vector, target) for vector in fitted] if encoding == "base64" else fitted
    return Reply(dump(embedding_reply(target.public, encoded, prompt)), usage=Usage(prompt))


def normalised(vector: Sequence[float]) -> Vector:
    """The same direction with length 1; a zero vector as it is."""
    length = math.sqrt(math.fsum(x * x for x in vector))
    return [x / length for x in vector] if length else list(vector)


def _one_by_one(common: JsonObject, texts: Sequence[str], target: Target) -> Asking:
    vectors = []
    for text in texts:
        answer = yield Ask("/api/embeddings", dump(common | {"prompt": text}))
        vectors.append(normalised(_vector(_body(answer, target).get("embedding"), target)))
    return vectors, 0


def _vectors(answer: Answered, count: int, target: Target) -> tuple[list[Vector], int]:
    body = _body(answer, target)
    given = body.get("embeddings")
    if not isinstance(given, list) or len(given) != count:
        raise unusable(target, f"not {count} vectors for {count} texts")
    return [_vector(one, target) for one in given], usage(body).prompt


def _body(answer: Answered, target: Target) -> JsonObject:
    if not 200 <= answer.status < 300:
        raise failure(answer, "embeddings", target.backend)
    try:
        body = load_object(answer.body)
    except InvalidJson:
        raise unusable(target, "no JSON object") from None
    told = error_in(body, "embeddings", target.backend)
    if told is not None:
        raise told
    return body


def _vector(value: Any, target: Target) -> Vector:
    if not isinstance(value, list) or not all(type(x) in (float, int) for x in value):
        raise unusable(target, "something that is no vector")
    return value


def _fitted(vector: Vector, dimensions: int | None) -> Vector:
    """As short as asked for; servers before 0.11.11 send the whole vector."""
    if dimensions is None or len(vector) <= dimensions:
        return vector
    return normalised(vector[:dimensions])


def _base64(vector: Vector, target: Target) -> str:
    try:
        packed = struct.pack(f"<{len(vector)}f", *vector)
    except (struct.error, OverflowError):
        raise unusable(target, "numbers that are no 32-bit floats") from None
    return binascii.b2a_base64(packed, newline=False).decode()


def _input(value: Any) -> list[str]:
    if value is None:
        raise error("missing_required_parameter", "`input` is missing: send a text or a list of texts.", param="input")
    if isinstance(value, str) and value:
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return value
    tokens = isinstance(value, list) and value and all(isinstance(one, int | list) for one in value)
    if tokens:
        raise _no_tokens()
    raise error("invalid_value", "`input` must be a text that is not empty, or a list of texts.", param="input")


def _no_tokens() -> ApiError:
    return error("unsupported_value", "Ollama embeds texts, not tokens: send `input` as text.", param="input")


def _dimensions(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise error("invalid_value", "`dimensions` must be an integer of 1 or more.", param="dimensions")
    return value
