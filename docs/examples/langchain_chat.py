"""LangChain: an answer, a stream, a tool.

pip install langchain-openai
python langchain_chat.py [MODEL] [QUESTION]
"""

import os
import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

name = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = sys.argv[2] if len(sys.argv) > 2 else "What is the weather in Bern?"

options: Any = {  # Any: the key may be a plain string
    "base_url": os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    "api_key": os.environ.get("OPENAI_API_KEY", "none"),
    "extra_body": {"top_k": 40},  # what OpenAI's API has no word for
}
chat = ChatOpenAI(model=name, **options)


@tool
def get_weather(city: str) -> str:
    """The weather in a city at this moment."""
    return f"sunny in {city}"


print("answer:", chat.invoke(question).content)

print("stream: ", end="")
for chunk in chat.stream(question):
    print(chunk.content, end="", flush=True)
print()

helped = chat.bind_tools([get_weather])
messages: list[Any] = [HumanMessage(question)]
for _ in range(5):
    reply = helped.invoke(messages)
    messages.append(reply)
    if not reply.tool_calls:
        break
    for call in reply.tool_calls:
        print("call:", call["name"], call["args"])
        messages.append(ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]))
print("with tools:", messages[-1].content)
