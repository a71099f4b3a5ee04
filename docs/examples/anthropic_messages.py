"""Anthropic's SDK: an answer, a stream, a tool.

    pip install anthropic
    python anthropic_messages.py MODEL [QUESTION]

For models of engines that have /v1/messages: vLLM, SGLang, llama-server, Ollama.
"""

import os
import sys
from typing import Any

from anthropic import Anthropic

if len(sys.argv) < 2:
    print("usage: anthropic_messages.py MODEL [QUESTION]", file=sys.stderr)
    sys.exit(2)
model = sys.argv[1]
question = sys.argv[2] if len(sys.argv) > 2 else "What is the weather in Bern?"

client = Anthropic(
    base_url=os.environ.get("ANTHROPIC_BASE_URL", "http://127.0.0.1:8000"),  # without /v1
    api_key=os.environ.get("ANTHROPIC_API_KEY", "none"),
)
asked: list[Any] = [{"role": "user", "content": question}]
answer = client.messages.create(model=model, max_tokens=500, messages=asked)
print("answer:", *(block.text for block in answer.content if block.type == "text"))

print("stream: ", end="")
with client.messages.stream(model=model, max_tokens=500, messages=asked) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()

TOOL: Any = {
    "name": "get_weather",
    "description": "The weather in a city at this moment.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
for _ in range(5):
    answer = client.messages.create(model=model, max_tokens=500, messages=asked, tools=[TOOL])
    asked.append({"role": "assistant", "content": answer.content})
    calls = [block for block in answer.content if block.type == "tool_use"]
    if not calls:
        break
    print("call:", *(f"{call.name} {call.input}" for call in calls))
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
    asked.append({"role": "user", "content": results})
print("with tools:", *(block.text for block in answer.content if block.type == "text"))
