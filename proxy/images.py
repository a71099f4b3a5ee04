"""Images from the network, for engines that can't fetch them: the rules for such URLs, and the fetching."""

from __future__ import annotations

from proxy.errors import error


class ImageFetcher:
    """Called with a URL; gives media type and bytes."""

    async def __call__(self, url: str) -> tuple[str, bytes]:
        raise error("unsupported_value", "http(s) image URLs are not fetched yet. Send a data: URL.", param="messages")
