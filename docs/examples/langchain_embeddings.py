"""LangChain's embeddings.

pip install langchain-openai
python langchain_embeddings.py [MODEL]
"""

import os
import sys
from typing import Any

from langchain_openai import OpenAIEmbeddings

options: Any = {
    "base_url": os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    "api_key": os.environ.get("OPENAI_API_KEY", "none"),
    # Without this it sends the tokens of OpenAI's own models, which mean something else to any other model.
    "check_embedding_ctx_length": False,
}
embeddings = OpenAIEmbeddings(model=sys.argv[1] if len(sys.argv) > 1 else "demo", **options)

texts = ["Cats sleep where it is warm.", "The bridge is built of stone."]
vectors = embeddings.embed_documents(texts)
wanted = embeddings.embed_query("The bridge is built of stone.")
products = [sum(x * y for x, y in zip(vector, wanted, strict=True)) for vector in vectors]
print(texts[products.index(max(products))])
