"""Pictures for a vision model.

    pip install openai
    python openai_vision.py MODEL PICTURE…

A PICTURE is a file or an http(s) URL. Engines that fetch no URLs get the picture from illm, which fetches from public
addresses only, unless `images.allow_private` is set.
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

if len(sys.argv) < 3:
    print("usage: openai_vision.py MODEL PICTURE…", file=sys.stderr)
    sys.exit(2)
model, pictures = sys.argv[1], sys.argv[2:]


def part(picture: str) -> Any:
    """What of a message's content shows this picture."""
    url = picture
    if not picture.startswith(("http://", "https://")):
        kind = mimetypes.guess_type(picture)[0] or "image/png"
        url = f"data:{kind};base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
content = [{"type": "text", "text": "What do you see?"}, *map(part, pictures)]
message: Any = {"role": "user", "content": content}
answer = client.chat.completions.create(model=model, messages=[message])
print(answer.choices[0].message.content)
