"""An answer as it comes.

pip install openai
python openai_stream.py [MODEL] [QUESTION]
"""

import os
import sys

from openai import OpenAI

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = sys.argv[2] if len(sys.argv) > 2 else "Hello"

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    stream=True,
    stream_options={"include_usage": True},  # one more chunk at the end, without choices
)
with stream:  # leaving early, by an exception or `break`, closes it; the engine then stops
    for chunk in stream:
        for choice in chunk.choices:
            # A thinking model's thoughts; `reasoning` instead with vLLM, unless illm is told another name.
            thought = getattr(choice.delta, "reasoning_content", None)
            print(thought or choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            print(f"\n({chunk.usage.completion_tokens} tokens)")
