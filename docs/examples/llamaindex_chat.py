"""LlamaIndex: an answer, a stream, a tool.

pip install llama-index-llms-openai-like
python llamaindex_chat.py [MODEL] [QUESTION]
"""

import os
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

question = sys.argv[2] if len(sys.argv) > 2 else "What is the weather in Bern?"
chat = OpenAILike(
    model=sys.argv[1] if len(sys.argv) > 1 else "demo",
    api_base=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    context_window=8192,  # the model's; LlamaIndex cuts prompts by it
    is_chat_model=True,  # otherwise chats go to /completions as one prompt
    is_function_calling_model=True,  # if it is one
    additional_kwargs={"extra_body": {"top_k": 40}},  # what OpenAI's API has no word for
)


def get_weather(city: str) -> str:
    """The weather in a city at this moment."""
    return f"sunny in {city}"


print("answer:", chat.chat([ChatMessage(role="user", content=question)]).message.content)

print("stream: ", end="")
for chunk in chat.stream_chat([ChatMessage(role="user", content=question)]):
    print(chunk.delta or "", end="", flush=True)
print()

tools = [FunctionTool.from_defaults(get_weather)]
result = chat.predict_and_call(tools, user_msg=question, error_on_no_tool_call=False)
print("with a tool:", result.response)
