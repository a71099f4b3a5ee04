"""What a body is read into where a glance at it does: msgspec's types, which is why this file is never compiled.

Not here: reading (`glance`), and what follows from it.
"""

from __future__ import annotations

from typing import Final

import msgspec

Raw = msgspec.Raw
ABSENT: Final = Raw(b"")
UNSET: Final = msgspec.UNSET
Unwanted = msgspec.UnsetType  # a type that nothing has: a body with that member is one to look at closer


class Message(msgspec.Struct, gc=False):
    """One message without media of its own; its `content` may be a list that holds some."""

    content: Raw = ABSENT
    output: Unwanted = UNSET
    type: Unwanted = UNSET
    image_url: Unwanted = UNSET
    image: Unwanted = UNSET
    image_base64: Unwanted = UNSET
    video_url: Unwanted = UNSET
    video: Unwanted = UNSET
    audio_url: Unwanted = UNSET
    audio: Unwanted = UNSET
    file_url: Unwanted = UNSET
    source: Unwanted = UNSET


class Glance(msgspec.Struct, gc=False):
    """A chat request's members that the gateway looks at. (The unwanted ones it would change, or they may hold media:
    any body may have what is meant for other endpoints.)"""

    messages: list[Message]
    model: str = ""
    stream: bool = False
    stream_options: Raw = ABSENT
    n: Raw = ABSENT
    repetition_penalty: Raw = ABSENT
    repeat_penalty: Raw = ABSENT
    framework: Unwanted = UNSET
    embedding_model: Unwanted = UNSET
    prompt: Unwanted = UNSET
    input: Unwanted = UNSET
    documents: Unwanted = UNSET
    query: Unwanted = UNSET
    queries: Unwanted = UNSET
    data_1: Unwanted = UNSET
    data_2: Unwanted = UNSET
    text_1: Unwanted = UNSET
    text_2: Unwanted = UNSET


class Counted(msgspec.Struct, gc=False):
    """Tokens, by each of the names that engines have for them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class Choice(msgspec.Struct, gc=False):
    """One of an answer's choices."""

    finish_reason: str | None = None


class Told(msgspec.Struct, gc=False):
    """A chat's or completion's answer."""

    choices: list[Choice]
    model: str
    object: str = ""
    error: Raw = ABSENT
    usage: Counted | None = None
