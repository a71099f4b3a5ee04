"""Models that must be loaded first.

    pip install openai
    python openai_waiting.py [MODEL] [QUESTION]

A launched engine is started by the first request: that request waits, and a stream gets a comment every few seconds, so
that no timeout between two bytes ends it. An engine that illm didn't start answers "loading" meanwhile, as 503 with
Retry-After, which the SDK heeds: give it enough tries.
"""

import os
import sys

from openai import OpenAI, Timeout

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = sys.argv[2] if len(sys.argv) > 2 else "Hello"

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    max_retries=20,
    timeout=Timeout(60, connect=5),  # seconds between two bytes, not of the whole answer
)
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    stream=True,  # a plain request needs a timeout as long as loading and answering together
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()
