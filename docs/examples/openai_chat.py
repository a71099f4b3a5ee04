"""One answer, whole.

pip install openai
python openai_chat.py [MODEL] [QUESTION]
"""

import os
import sys

from openai import OpenAI

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = sys.argv[2] if len(sys.argv) > 2 else "Hello"

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),  # any, unless illm has api_keys
)
answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    extra_body={"top_k": 40},  # what OpenAI's API has no word for, under the engine's own name
)
print(answer.choices[0].message.content)
if answer.usage is not None:
    print(f"({answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} out)")
