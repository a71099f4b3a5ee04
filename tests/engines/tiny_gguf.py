"""Writes a tiny llama-architecture model as GGUF: a third of a megabyte, deterministic, standard library only.

    python -m tests.engines.tiny_gguf OUT.gguf [--text …] [--ctx N] [--tools] [--pooling KIND] [--random SEED]

Attention and feed-forward weights are zero, so the last token alone decides the next one: the model says what
speech.py lays down, one word a token, then ends its turn. Prompts are one token a character, plus BOS and the
template's tokens. `--random` gives gaussian weights instead.
"""

import argparse
import random
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.engines import speech

DIM, HEADS, FEED_FORWARD = 64, 2, 64
ALIGNMENT = 32
CERTAIN = 4.0  # after the norm a logit of 32 over everything else: the chain holds at temperature 2 too

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # GGUF's types of values
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # llama.cpp's types of tokens
POOLING = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
SPACE = "\u2581"  # how a SentencePiece vocabulary writes one

Value = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[str]
Entry = tuple[str, int, Value]
Tensor = tuple[str, tuple[int, ...], "array[float]"]
_FORMATS = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What a model is like. `pooling` makes it an embedding model for programs that look at the file (Ollama)."""

    text: str = speech.TEXT
    ctx: int = 4096
    tools: bool = False
    pooling: Literal["mean", "cls", "last", "rank"] | None = None
    template: bool = True  # carries a chat template: one in the file wins over a template of Ollama's own
    seed: int | None = None  # gaussian weights from this seed instead of the chain
    name: str = "tiny-llama"


def build(model: TinyModel) -> bytes:
    """The GGUF file's bytes. Raises ValueError where the text has equal words or too many."""
    tokens = vocabulary(model)
    tensors = weights(model, [piece for piece, _ in tokens])
    entries = metadata(model, tokens)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(pack_entry(*e) for e in entries)
    data = b""
    for name, shape, values in tensors:
        head += pack_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))  # type 0: F32
        data += padded(values.tobytes())
    return padded(head) + data


def write(path: Path, model: TinyModel) -> Path:
    path.write_bytes(build(model))
    return path


def vocabulary(model: TinyModel) -> list[tuple[str, int]]:
    chain, _ = speech.successors(model.text)
    starts = (speech.CALL_START, speech.FOREVER_START, speech.THINK_START)
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += [(piece, CONTROL) for piece in (speech.TURN_START, speech.TURN_END, *starts)]
    tokens += [(SPACE, NORMAL), *((chr(code), NORMAL) for code in range(33, 127))]
    known = {piece for piece, _ in tokens}
    tokens += [(spelt, NORMAL) for piece in chain if (spelt := piece.replace(" ", SPACE)) not in known]
    return tokens


def weights(model: TinyModel, pieces: list[str]) -> list[Tensor]:
    rng = random.Random(model.seed or 0)
    if model.seed is None:
        embedding, output = chain_weights(model.text, pieces, rng)
    else:
        embedding = gaussian(rng, len(pieces) * DIM, 1)
        output = gaussian(rng, len(pieces) * DIM, 0.3)

    def matrix(rows: int, columns: int) -> "array[float]":
        return array("f", bytes(4 * rows * columns)) if model.seed is None else gaussian(rng, rows * columns, 0.1)

    ones = array("f", [1.0] * DIM)
    shapes = {f"attn_{part}": (DIM, DIM) for part in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": (DIM, FEED_FORWARD), "ffn_up": (DIM, FEED_FORWARD), "ffn_down": (FEED_FORWARD, DIM)}
    return [
        ("token_embd.weight", (DIM, len(pieces)), embedding),
        ("output.weight", (DIM, len(pieces)), output),
        *((f"{name}.weight", (DIM,), ones) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")),
        *((f"blk.0.{name}.weight", shape, matrix(*shape)) for name, shape in shapes.items()),
    ]


def chain_weights(text: str, pieces: list[str], rng: random.Random) -> tuple["array[float]", "array[float]"]:
    """Each token of the chain has a dimension of its own, which its successor answers to; the last dimension is
    every other token's, with a little noise beside it so that embeddings differ."""
    chain, first = speech.successors(text)
    if len(chain) >= DIM:
        raise ValueError(f"the text has too many words: {len(chain) - DIM + 1} fewer will do")
    index = {piece.replace(SPACE, " "): number for number, piece in enumerate(pieces)}
    embedding, output = array("f", bytes(4 * len(pieces) * DIM)), array("f", bytes(4 * len(pieces) * DIM))
    for number in range(len(pieces)):
        for dimension in range(len(chain), DIM - 1):
            embedding[number * DIM + dimension] = rng.gauss(0, 0.05)
        embedding[number * DIM + DIM - 1] = 1.0
    output[index[first] * DIM + DIM - 1] = CERTAIN
    for dimension, (piece, successor) in enumerate(chain.items()):
        row = index[piece] * DIM
        embedding[row : row + DIM] = array("f", [float(at == dimension) for at in range(DIM)])
        output[index[successor] * DIM + dimension] = CERTAIN
    return embedding, output


def gaussian(rng: random.Random, count: int, sigma: float) -> "array[float]":
    return array("f", (rng.gauss(0, sigma) for _ in range(count)))


def metadata(model: TinyModel, tokens: list[tuple[str, int]]) -> list[Entry]:
    pieces, kinds = [piece for piece, _ in tokens], [kind for _, kind in tokens]
    entries: list[Entry] = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, model.name),
        ("general.alignment", U32, ALIGNMENT),
        ("general.file_type", U32, 0),
        ("llama.vocab_size", U32, len(tokens)),
        ("llama.context_length", U32, model.ctx),
        ("llama.embedding_length", U32, DIM),
        ("llama.block_count", U32, 1),
        ("llama.feed_forward_length", U32, FEED_FORWARD),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.dimension_count", U32, DIM // HEADS),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", STRING, pieces),
        ("tokenizer.ggml.scores", F32, [0.0] * len(tokens)),
        ("tokenizer.ggml.token_type", I32, kinds),
        ("tokenizer.ggml.bos_token_id", U32, pieces.index("<s>")),
        ("tokenizer.ggml.eos_token_id", U32, pieces.index(speech.TURN_END)),
        ("tokenizer.ggml.unknown_token_id", U32, pieces.index("<unk>")),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_space_prefix", BOOL, False),
    ]
    if model.pooling:
        entries.append(("llama.pooling_type", U32, POOLING[model.pooling]))
    elif model.template:
        entries.append(("tokenizer.chat_template", STRING, speech.chat_template(model.tools)))
    return entries


def pack_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pack_value(kind: int, value: int | float | bool | str) -> bytes:
    return pack_string(value) if isinstance(value, str) else struct.pack(_FORMATS[kind], value)


def pack_entry(key: str, kind: int, value: Value) -> bytes:
    if isinstance(value, (str, int, float)):
        return pack_string(key) + struct.pack("<I", kind) + pack_value(kind, value)
    items = b"".join(pack_value(kind, item) for item in value)
    return pack_string(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + items


def padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % ALIGNMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default=speech.TEXT, help="words that all differ")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--tools", action="store_true", help="a chat template that knows tools")
    parser.add_argument("--pooling", choices=sorted(POOLING), help="an embedding model")
    parser.add_argument("--random", type=int, metavar="SEED", dest="seed")
    options = vars(parser.parse_args())
    write(options.pop("out"), TinyModel(**options))


if __name__ == "__main__":
    main()
