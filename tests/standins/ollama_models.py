"""The stand-in's models: what each says, what it can, and whose template renders it.

The names are those of the captured answers (`answers/ollama/README.md`), plus `helper` and `jhelper`, which behave as
a sensible model does (call a tool when a user's turn comes with tools, else the known text), and `gvision`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from tests.engines.speech import TEXT, text_pieces

JINJA = (0, 30)  # since then a template that only the GGUF has is left to llama-server


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    says: tuple[str, ...] = text_pieces(TEXT)
    thinks: tuple[str, ...] = ()
    calls: tuple[tuple[str, dict[str, str]], ...] = ()  # without any it says text whatever tools there are
    obliging: bool = False  # calls only when a user's turn comes with tools
    gguf_template: bool = False
    can: tuple[str, ...] = ("completion",)
    unseen: tuple[str, ...] = ()  # what only a GGUF template can: /api/tags does not know
    num_ctx: int = 4096
    context: int = 4096
    end_tokens: int = 1  # counted beside the words: the end, tags of thinking
    endless: bool = False
    built_in_parser: bool = False
    breaks: bool = False  # its runner ends while loading

    def capabilities(self, since: tuple[int, ...]) -> tuple[str, ...]:
        return (*self.can, *(self.unseen if since >= JINJA else ()))

    def in_engine(self, since: tuple[int, ...]) -> bool:
        """Whether llama-server renders and parses its chats."""
        return self.gguf_template and since >= JINJA

    def words(self) -> Iterator[str]:
        if not self.endless:
            return iter(self.says)
        return (word for words in repeat(self.says) for word in words)


_OSLO = (("get_weather", {"city": "Oslo"}),)
_BERN = (("get_weather", {"city": "Bern"}),)
_CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
_CALL_WORDS = ('{"name":', ' "get_weather",', ' "arguments":', ' {"city":', ' "Oslo"}}')
_JCALL_WORDS = ("<tool_call>\n", '{"name": "get_weather",', ' "arguments": ', '{"city": "Oslo"}}', "\n</tool_call>")
_BLUE = ("Blue", " it", " is", " .")
_TOOLS, _THINKS = ("completion", "tools"), ("completion", "thinking")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNT = (_NUMBERS[0], *(f" {word}" for word in _NUMBERS[1:]))

MODELS = {
    each.name: each
    for each in (
        Model("helper", calls=_BERN, obliging=True, can=_TOOLS),
        Model("jhelper", calls=_BERN, obliging=True, gguf_template=True, unseen=("tools",)),
        Model("gvision", can=("completion", "vision")),
        Model("tiny"),
        Model("gtools", says=_CALL_WORDS, calls=_OSLO, can=_TOOLS),
        Model("jtools", says=_JCALL_WORDS, calls=_OSLO, gguf_template=True, unseen=("tools",)),
        Model(
            "pqwen2",
            says=("<tool_call>", _CALL, "</tool_call>", "\n<tool_call>", "{", '"name": "now"', "}", "</tool_call>"),
            calls=(*_OSLO, ("now", {})),
            can=_TOOLS,
            built_in_parser=True,
        ),
        Model("gthink", _BLUE, ("Let", " me", " ponder", " colours "), can=_THINKS, end_tokens=3),
        Model(
            "jthink",
            _BLUE,
            ("Let", " me", " ponder", " colours\n"),
            gguf_template=True,
            unseen=("thinking",),
            end_tokens=0,
        ),
        Model("json", ("{", ' "colour"', " :", ' "red"', " }")),
        Model("loop", _COUNT, endless=True, num_ctx=256),
        Model("grepeat", ("ha",), endless=True),
        Model("jrepeat", ("ha",), endless=True, gguf_template=True),
        Model("ginsert", can=("completion", "insert")),
        Model("random", breaks=True),
        Model("embed", can=("embedding",), context=512, num_ctx=512),
    )
}


def find(name: str, since: tuple[int, ...]) -> Model | None:
    """`x` and `x:latest` are the same; case counts before 0.30."""
    wanted = (name.lower() if since >= JINJA else name).removesuffix(":latest")
    return MODELS.get(wanted)


def split_words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def prompt_tokens(text: str) -> int:
    """One for each byte of text."""
    return len(text.encode())
