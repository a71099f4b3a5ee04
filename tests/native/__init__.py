"""TGI and Ollama in their own languages, end to end: official clients, a real gateway, the stand-ins' processes."""
