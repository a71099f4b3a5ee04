"""What TGI tells about a finished generation: `details`, and the counts and times in headers."""

from typing import Any

from tests.standins.tgi_model import Said, seed, top_tokens
from tests.standins.tgi_rules import Job, Settings
from tests.standins.tgi_tokens import encode


def details(job: Job, said: Said, draw: int, settings: Settings) -> dict[str, Any]:
    prefill = []
    if job.parameters.get("decoder_input_details"):
        front = [(1, "<s>")] if settings.tokenizer_bos else []
        shown = [*front, *((piece.id, piece.data.decode("utf-8", "replace")) for piece in encode(job.inputs))]
        prefill = [
            {"id": number, "text": text, "logprob": -1.5 if at else None} for at, (number, text) in enumerate(shown)
        ]
    details = {
        "finish_reason": said.finish,
        "generated_tokens": len(said.tokens),
        "seed": seed(job, draw),
        "prefill": prefill,
        "tokens": [each.members() for each in said.tokens],
    }
    count = job.parameters.get("top_n_tokens")
    if count:
        details["top_tokens"] = [[other.members() for other in top_tokens(each, count)] for each in said.tokens]
    return details


def timings(characters: int, prompt: int, generated: int, settings: Settings) -> tuple[tuple[str, str], ...]:
    values: dict[str, object] = {
        "x-compute-type": "gpu+optimized",
        "x-compute-time": "0.015991497",
        "x-compute-characters": characters,
        "x-total-time": 15,
        "x-validation-time": 0,
        "x-queue-time": 0,
        "x-inference-time": 14,
        "x-time-per-token": 1,
    }
    if settings.since >= (1, 4):
        values |= {"x-prompt-tokens": prompt, "x-generated-tokens": generated}
    return tuple((name, str(value)) for name, value in values.items())


def stream_details(job: Job, finish: str, count: int, settings: Settings) -> dict[str, Any]:
    details = {"finish_reason": finish, "generated_tokens": count, "seed": seed(job)}
    return details | ({"input_length": job.prompt_tokens} if settings.since >= (2, 3) else {})
