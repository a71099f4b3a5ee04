"""What the tiny chat models say, and the template that makes them say it.

A tiny model is a Markov chain: the next token depends on the last one alone. So a chat template chooses the answer by
the token that it ends with: a fixed text, a tool call when the request has tools, words without end or some thinking
before the text when the last message asks for it. That makes content, usage and finish reasons known beforehand, at
any temperature.

Standard library only and free of imports from the project: tiny_hf.py runs in an engine's own environment.
"""

TEXT = "Once upon a time two small llamas met near the old stone bridge and sang until morning came ."

TOOL_NAME = "get_weather"
TOOL_ARGUMENTS = '{"city": "Bern"}'
# What the template ends with to choose another answer.
CALL_START, FOREVER_START, THINK_START = "<|call|>", "<|forever|>", "<|think|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
FOREVER_WORD = "forever"  # a last message that has it gets an endless answer
THINK_WORD = "ponder"  # a last message that has it makes the model think first, unless thinking is switched off

# Pieces of one token each; no piece occurs twice anywhere, or the chain would fork.
CALL_PIECES = (
    *("<tool_call>", '\n{"', "name", '": "', TOOL_NAME, '", "', "arguments", '": ', '{"city"', ': "Be', 'rn"}', "}\n"),
    "</tool_call>",
)
FOREVER_PIECES = (" la", " di", " da", " dum")
THOUGHT = "llamas like bridges"
THINK_PIECES = ("<think>", "\nllamas", " like", " bridges", "\n</think>", "\n\n")

_TOOLS_HEAD = (
    "{% if tools %}<|im_start|>system\nYou may call these functions:\n<tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\n"
    'For each call answer:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    "<|im_end|>\n{% endif %}"
)
_MESSAGES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% elif m['content'] %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if m['tool_calls'] %}{% for call in m['tool_calls'] %}"
    "<tool_call>\n{\"name\": \"{{ call['function']['name'] }}\", "
    "\"arguments\": {{ call['function']['arguments'] | tojson }}}\n</tool_call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
_TURN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_CALL = "{% if tools and messages[-1]['role'] == 'user' %}<|call|>{% endif %}"
_FOREVER = "{% if 'forever' in messages[-1]['content'] | tojson %}<|forever|>{% endif %}"  # content may be parts
_THINK = (
    "{% if 'ponder' in messages[-1]['content'] | tojson and not (enable_thinking is defined and not enable_thinking) %}"
    "<|think|>{% endif %}"
)


def chat_template(tools: bool) -> str:
    """A Jinja chat template; with `tools` a model calls `TOOL_NAME` whenever a user's turn comes with tools."""
    if tools:
        return _TOOLS_HEAD + _MESSAGES + _TURN + _CALL + _FOREVER + _THINK + "{% endif %}"
    return _MESSAGES + _TURN + _FOREVER + _THINK + "{% endif %}"


def text_pieces(text: str) -> tuple[str, ...]:
    """One piece for each word, the space before it included; the words must all differ."""
    first, *rest = text.split(" ")
    pieces = (first, *(f" {word}" for word in rest))
    if len(set(pieces)) != len(pieces):
        raise ValueError("the words of a tiny model's text must all differ")
    return pieces


def successors(text: str) -> tuple[dict[str, str], str]:
    """The chain as piece → next piece, and the piece that follows everything else."""
    words = text_pieces(text)
    chain = dict(zip(words, (*words[1:], TURN_END), strict=True))
    chain |= dict(zip((CALL_START, *CALL_PIECES), (*CALL_PIECES, TURN_END), strict=True))
    endless = (*FOREVER_PIECES, FOREVER_PIECES[0])
    chain |= dict(zip((FOREVER_START, *FOREVER_PIECES), endless, strict=True))
    chain |= dict(zip((THINK_START, *THINK_PIECES), (*THINK_PIECES, words[0]), strict=True))
    return chain, words[0]
