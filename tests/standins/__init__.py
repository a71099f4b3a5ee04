"""Stand-ins for TGI's router and for Ollama: real programs, real sockets, answers known beforehand.

    python -m tests.standins.tgi    --port P [--version 3.3.6-dev0|2.3.1-dev0|2.0.4] [--vision] [--max-concurrent N] ...
    python -m tests.standins.ollama --port P [--version 0.33.0|0.12.11|0.12.5|0.2.0] [--load-delay S] ...

`support.py` starts them in tests, `directives.py` lists what a prompt or a control call can make them do wrong, and
`server.py` tells how to see what arrived. `answers/` holds raw answers of the real programs; test_*_replay.py posts
the same requests to the stand-ins and compares. A stand-in that differs from the real program is wrong.
Nothing here imports the gateway, so that the two can't share a mistake.
"""
