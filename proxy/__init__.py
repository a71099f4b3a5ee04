"""The gateway: one OpenAI-compatible way in, one way out to each engine. See docs/architecture.md."""

import sys

__version__ = "0.1.0"

# httpx imports its own command line with itself, and with that rich and pygments: 25 ms and 3.5 MB for nothing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: it can't be imported, which httpx expects
