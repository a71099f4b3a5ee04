"""Which text is nearest to a question.

pip install openai
python openai_embeddings.py [MODEL]
"""

import os
import sys

from openai import OpenAI

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = "Where do cats sleep?"
texts = ["Cats sleep where it is warm.", "The bridge is built of stone.", "Where do cats sleep?"]

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
answer = client.embeddings.create(model=model, input=[question, *texts])
wanted, *vectors = [entry.embedding for entry in answer.data]


def cosine(one: list[float], other: list[float]) -> float:
    length = (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5
    return sum(x * y for x, y in zip(one, other, strict=True)) / length if length else 0.0


print(f"{len(wanted)} numbers each")
ranked = [(cosine(wanted, vector), text) for vector, text in zip(vectors, texts, strict=True)]
for similarity, text in sorted(ranked, reverse=True):
    print(f"{similarity:.3f}  {text}")
