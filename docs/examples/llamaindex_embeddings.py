"""LlamaIndex's embeddings.

pip install llama-index-embeddings-openai-like
python llamaindex_embeddings.py [MODEL]
"""

import os
import sys

from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

embeddings = OpenAILikeEmbedding(
    model_name=sys.argv[1] if len(sys.argv) > 1 else "demo",
    api_base=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
texts = ["Cats sleep where it is warm.", "The bridge is built of stone."]
index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=embeddings)
(found,) = index.as_retriever(similarity_top_k=1).retrieve("The bridge is built of stone.")
print(found.text)
