"""The stand-in model's tokenizer for TGI: byte-level, with the pieces that the captured answers show.

The pieces stand in `answers/tgi-pieces.json`; the longest one that fits is taken, so counts come out as captured but
for rare places where real byte-pair merging splits otherwise. The known text is one token a word. Ids of single bytes
follow the byte-level alphabet.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engines.speech import FOREVER_PIECES, TEXT, text_pieces

BOS, EOS = "<s>", "</s>"
_FIRST_BYTE = 4
_FIRST_WORD = 3000
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_ALPHABET = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))


@dataclass(frozen=True, slots=True)
class Piece:
    """One token; `data` is its part of the text in bytes."""

    id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token as TGI reports it."""

    id: int
    text: str
    logprob: float
    special: bool = False

    def members(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "logprob": self.logprob, "special": self.special}


def _load() -> dict[bytes, int]:
    pieces = json.loads((Path(__file__).parent / "answers" / "tgi-pieces.json").read_text())
    known = {text.encode(): number for text, number in pieces.items()}
    return known | {bytes([byte]): _FIRST_BYTE + at for at, byte in enumerate(_ALPHABET)}


PIECES = _load()
_LONGEST = max(map(len, PIECES))
WORDS = {word: _FIRST_WORD + at for at, word in enumerate((*text_pieces(TEXT), *FOREVER_PIECES))}


def encode(text: str) -> list[Piece]:
    """The tokens of a prompt, without any that a tokenizer adds by itself."""
    data, at, found = text.encode(), 0, []
    while at < len(data):
        size = next(size for size in range(min(_LONGEST, len(data) - at), 0, -1) if data[at : at + size] in PIECES)
        found.append(Piece(PIECES[data[at : at + size]], data[at : at + size]))
        at += size
    return found


def spoken(text: str) -> list[Token]:
    """The tokens of an answer, its end token included. A character of several tokens is the text of its last one."""
    if text == TEXT:
        words = text_pieces(TEXT)
        return [*(token(WORDS[word], word, at) for at, word in enumerate(words)), end(len(words))]
    held, found = b"", []
    for at, piece in enumerate(encode(text)):
        held += piece.data
        try:
            shown, held = held.decode(), b""
        except UnicodeDecodeError:
            shown = ""
        found.append(token(piece.id, shown, at))
    return [*found, end(len(found))]


def token(number: int, text: str, at: int) -> Token:
    return Token(number, text, round(-0.05 - 0.125 * (at % 5), 3))


def end(at: int) -> Token:
    return Token(PIECES[EOS.encode()], EOS, round(-0.05 - 0.125 * (at % 5), 3), special=True)


def tokenized(text: str, bos: bool) -> list[dict[str, Any]]:
    """What `/tokenize` lists: offsets in bytes, and for a part of a character the whole character."""
    data, at = text.encode(), 0
    found = [{"id": PIECES[BOS.encode()], "text": "", "start": 0, "stop": 0}] if bos else []
    for piece in encode(text):
        start, stop = at, at + len(piece.data)
        while start and data[start] & 0xC0 == 0x80:
            start -= 1
        while stop < len(data) and data[stop] & 0xC0 == 0x80:
            stop += 1
        found.append({"id": piece.id, "text": data[start:stop].decode(), "start": start, "stop": stop})
        at += len(piece.data)
    return found
