"""The tiny models as files, made once into a folder: what each one is for, and who makes it.

The GGUF ones are written in this process; the Hugging Face ones by a program that runs in vLLM's environment.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.engines import install
from tests.engines.tiny_gguf import TinyModel, write

CONTEXT = 262144  # long enough that an endless answer outlives any test that cuts it
CHAT = "tiny-chat"
EMBED = "tiny-embed"
RERANK = "tiny-rerank"

# Ollama's own templates (Go), by the name of the model that gets them; what a template uses is what Ollama takes the
# model to be able to do. They need a GGUF file without a template, since that would win.
_GO_MESSAGES = (
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}<|im_start|>{{ .Role }}\n"
    "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}{{ .Content }}"
    "{{ if .ToolCalls }}{{ range .ToolCalls }}"
    '<tool_call>\n{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n'
    "</tool_call>{{ end }}{{ end }}<|im_end|>\n"
)
_GO_TURN = "{{ if $last }}<|im_start|>assistant\n%s{{ end }}{{ end }}"
GO_TEMPLATES = {
    "tiny-tools": "{{ if .Tools }}<|im_start|>system\n{{ .Tools }}<|im_end|>\n{{ end }}"
    + _GO_MESSAGES.replace("{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}", "")
    + _GO_TURN % '{{ if and $.Tools (eq .Role "user") }}<|call|>{{ end }}',
    "tiny-think": _GO_MESSAGES + _GO_TURN % "{{ if or $.Think (not $.IsThinkSet) }}<|think|>{{ end }}",
    "tiny-insert": "{{ if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}",
}


@dataclass(frozen=True, slots=True)
class Gguf:
    """Paths of the GGUF models."""

    chat: Path
    embed: Path
    rerank: Path
    bare: Path  # the chat model without a template


def gguf_models(folder: Path) -> Gguf:
    """Writes the GGUF models below `folder` (0.2 s)."""
    folder.mkdir(parents=True, exist_ok=True)
    return Gguf(
        chat=write(folder / f"{CHAT}.gguf", TinyModel(ctx=CONTEXT, tools=True)),
        embed=write(folder / f"{EMBED}.gguf", TinyModel(pooling="mean")),
        bare=write(folder / "tiny-bare.gguf", TinyModel(ctx=CONTEXT, template=False)),
        rerank=write(folder / f"{RERANK}.gguf", TinyModel(seed=1)),  # the chain's weights would rank all alike
    )


def hf_models(folder: Path, layers: int | None = None) -> Path:
    """Writes the Hugging Face models below `folder` and returns it (5 s). More `layers` than usual make the chat model
    slower. Raises install.CannotBeHad."""
    python = install.ensure("vllm").with_name("python")
    maker = Path(__file__).with_name("tiny_hf.py")
    done = subprocess.run(
        [python, maker, folder, *([str(layers)] if layers else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise install.CannotBeHad(f"the tiny Hugging Face models could not be made: {done.stderr[-2000:]}")
    return folder
