"""What can be asked, and in which state it is.

    pip install openai
    python openai_models.py [KIND]

KIND (vllm, ollama, llamacpp, …) lists what backends of that kind have.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
chosen = {"framework": sys.argv[1]} if len(sys.argv) > 1 else {}
for model in client.models.list(extra_query=chosen):
    more = model.model_extra or {}  # beyond OpenAI's: state, backends, context_length, …
    print(model.id, more.get("state", "?"), *more.get("backends", []))
