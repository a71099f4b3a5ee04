"""What can go wrong, and how a program sees it.

pip install openai
python openai_errors.py [MODEL] [QUESTION]
"""

import os
import sys

import openai

model = sys.argv[1] if len(sys.argv) > 1 else "no-such-model"
question = sys.argv[2] if len(sys.argv) > 2 else "Hello"

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    max_retries=2,  # by itself it tries 429 and 5xx again, unless illm says that this can't help
)
try:
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], stream=True
    ):
        print("".join(choice.delta.content or "" for choice in chunk.choices), end="", flush=True)
    print()
except openai.APIConnectionError as problem:  # nobody listens there, or it took longer than `timeout`
    print(f"no answer from {client.base_url}: {problem.__cause__ or problem}")
except openai.RateLimitError as problem:  # 429: the queue is full
    print(f"busy, try again in {problem.response.headers.get('retry-after', 'a few')} s: {problem.message}")
except openai.APIStatusError as problem:  # every other status from 400 on; NotFoundError, BadRequestError, …
    print(f"{problem.status_code} {problem.type} {problem.code} (param: {problem.param})")
    print(problem.body["message"] if isinstance(problem.body, dict) else problem.message)
    print(f"in illm's log as {problem.request_id}")
except openai.APIError as problem:  # a stream that had begun: no status any more, only the error itself
    print(f"\nbroke off: {problem.type} {problem.code}")
    print(problem.message)
