"""The public name in place of the engine's, where it stands and nowhere else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.openai.names import Renamer


def renamed(*pieces: bytes, public: str = "pub") -> list[bytes]:
    """Learnt from the first."""
    renamer = Renamer(public)
    renamer.learn(pieces[0])
    return [renamer.apply(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b'{"model":"up"}', b'{"model":"pub"}'),
        (b'{"model" : "up"}', b'{"model" : "pub"}'),
        (b'{"model":\n"up"}', b'{"model":\n"pub"}'),
        (b'{"model":"a\\"b\\\\"}', b'{"model":"pub"}'),
        (b'{"model":""}', b'{"model":"pub"}'),
        (b'{"model":"pub"}', b'{"model":"pub"}'),
        (b'{"model":"up"}{"model":"up"}', b'{"model":"pub"}{"model":"pub"}'),
        (b'{"model":null}', b'{"model":null}'),
        (b'{"models":"up","a_model":"up"}', b'{"models":"up","a_model":"up"}'),
        (b'{"text":"\\"model\\":\\"up\\"","model":"up"}', b'{"text":"\\"model\\":\\"up\\"","model":"pub"}'),
    ],
)
def test_where_it_stands(given: bytes, expected: bytes) -> None:
    assert renamed(given) == [expected]


def test_later_pieces() -> None:
    first, second, other = renamed(b'{"model":"up"}', b'{"x":1,"model":"up"}', b'{"model":"other"}')

    assert second == b'{"x":1,"model":"pub"}'
    assert other == b'{"model":"other"}'
    assert first == b'{"model":"pub"}'


def test_a_piece_without_a_name_teaches_nothing() -> None:
    renamer = Renamer("pub")
    renamer.learn(b'{"x":1}')

    assert not renamer.known
    renamer.learn(b'{"model":"up"}')
    assert renamer.known
    assert renamer.apply(b'{"model":"up"}') == b'{"model":"pub"}'


@given(st.text(), st.text(), st.text())
def test_any_names_and_any_text(upstream: str, public: str, text: str) -> None:
    body = {"content": text, "model": upstream, "list": [text, '"model":"' + upstream + '"']}
    (out,) = renamed(json.dumps(body).encode(), public=public)

    assert json.loads(out) == body | {"model": public}
