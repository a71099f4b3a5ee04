"""A model that calls a function of yours.

pip install openai
python openai_tools.py [MODEL] [QUESTION]
"""

import json
import os
import sys
from typing import Any

from openai import OpenAI

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = sys.argv[2] if len(sys.argv) > 2 else "What is the weather in Bern?"


def get_weather(city: str) -> str:
    return json.dumps({"city": city, "sky": "sunny", "celsius": 21})


FUNCTIONS = {"get_weather": get_weather}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city at this moment.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
messages: list[Any] = [{"role": "user", "content": question}]
for _ in range(5):  # rounds: a model may call again after it has seen a result
    message = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message
    messages.append(message.model_dump(exclude_none=True))
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        if call.type != "function":
            continue
        print(f"{call.function.name}({call.function.arguments})")
        try:
            result = FUNCTIONS[call.function.name](**json.loads(call.function.arguments))
        except (KeyError, TypeError, ValueError) as problem:  # models make such mistakes: let it try again
            result = f"error: {problem!r}"
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
print(messages[-1]["content"])
