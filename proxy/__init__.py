"""The gateway: one OpenAI-compatible way in, one way out to each engine. See docs/architecture.md."""

__version__ = "0.1.0"
