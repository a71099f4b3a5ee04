"""TGI's own /v1 (`chat_mode: openai`), the two halves under one name.

Requests are in `tgi_request`, answers in `tgi_reply`; what native TGI needs too (messages, schemas, error kinds) is
shared. All of it works on parsed JSON; framing and bytes are the caller's.
"""

from __future__ import annotations

from proxy.dialects.openai.tgi_fan_out import children, fixers, joined
from proxy.dialects.openai.tgi_reply import ReplyFixer
from proxy.dialects.openai.tgi_request import encode, has_tools_only

__all__ = ["ReplyFixer", "children", "encode", "fixers", "has_tools_only", "joined"]
