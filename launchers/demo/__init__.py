"""The demo engine: a small OpenAI server that stands in until there is a real one, and says so.

`illm serve` starts it as a process of its own where it finds no engine, so that the first request has an answer.
`answers` is what it says (no I/O), `app` is its HTTP side, `__main__` its command line and its life time. Nothing
of the gateway is used here, and there is no language model anywhere in it.
"""
