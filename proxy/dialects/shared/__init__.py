"""What several dialects need and no dialect owns: reading OpenAI's requests, writing its answers, TGI's and Ollama's
common ground. Pure, like the dialects; it imports none of them."""
