"""As users measure: `vllm bench serve` on a real vLLM, asked directly and through illm, in turn (A B B A).

    python -m benchmarks.serve_bench [--rounds 5] [--prompts 48] [--concurrency 2] [--write README.md]

vLLM runs on the CPU with a tiny model that takes longer to compute than to tell (tests/engines), and shares the
machine's cores with everything else: only the difference between the two ways says something about illm. The first
run fetches vLLM (gigabytes). Each half of a round takes some seconds; the whole some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.figures import running
from benchmarks.load import KEY
from benchmarks.processes import to_its_end
from benchmarks.targets import illm
from benchmarks.upstream import MODEL
from tests.conformance.report import write_between_marks
from tests.engines import install, models, servers
from tests.engines.process import NotReady

MARKS: Final = ("<!-- serve-bench:begin -->", "<!-- serve-bench:end -->")
TITLES: Final = {
    "median_ttft_ms": "first token p50 (ms)",
    "p99_ttft_ms": "first token p99 (ms)",
    "median_itl_ms": "between tokens p50 (ms)",
    "p99_itl_ms": "between tokens p99 (ms)",
    "output_throughput": "tokens a second",
}
LIMIT: Final = 300.0  # seconds for one half of a round
LAYERS: Final = 96  # some milliseconds a token; where they come faster vLLM tells several at a time
Ways = Mapping[str, Sequence[Mapping[str, float]]]  # direct, through illm


def table(rounds: Ways) -> str:
    """Medians of both ways, and the median of the differences within a round."""
    direct, through = rounds["direct"], rounds["through illm"]
    lines = ["| | direct | through illm | difference |", "| --- | ---: | ---: | ---: |"]
    for name, title in TITLES.items():
        before, after = median(each[name] for each in direct), median(each[name] for each in through)
        difference = median(b[name] - a[name] for a, b in zip(direct, through, strict=True))
        lines.append(f"| {title} | {before:.2f} | {after:.2f} | {difference:+.2f} |")
    return "\n".join(lines)


def ask(port: int, folder: Path, tokenizer: Path, prompts: int, concurrency: int) -> Mapping[str, float]:
    """One run of `vllm bench serve`; blocks. Raises SystemExit with the end of what it said where it fails."""
    program, file = install.ensure("vllm"), folder / "result.json"
    command: list[str | Path] = [program, "bench", "serve", "--backend", "openai-chat"]
    command += ["--base-url", f"http://127.0.0.1:{port}", "--endpoint", "/v1/chat/completions"]
    command += ["--model", MODEL, "--tokenizer", tokenizer, "--dataset-name", "random", "--ignore-eos"]
    command += ["--random-input-len", "128", "--random-output-len", "64", "--num-prompts", str(prompts)]
    command += ["--max-concurrency", str(concurrency), "--num-warmups", str(concurrency), "--disable-tqdm"]
    command += ["--percentile-metrics", "ttft,itl", "--metric-percentiles", "99"]
    command += ["--save-result", "--result-dir", folder, "--result-filename", file.name]
    environment = {**os.environ, **servers.OFFLINE, "OPENAI_API_KEY": KEY, "HF_HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise SystemExit(f"`vllm bench serve` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    result = json.loads(file.read_text())
    file.unlink()
    if result["completed"] != prompts:
        raise SystemExit(f"Only {result['completed']} of {prompts} requests were answered.")
    return {name: float(result[name]) for name in TITLES}


def measured(rounds: int, prompts: int, concurrency: int, folder: Path) -> Ways:
    chat = models.hf_models(folder, LAYERS) / models.CHAT
    found: dict[str, list[Mapping[str, float]]] = {"direct": [], "through illm": []}
    with (
        servers.vllm(chat, folder, MODEL, "--max-model-len", "4096") as engine,
        running(illm("illm", compiled=False), engine.port, folder, None) as (_, port, _),
    ):
        ways = [("direct", engine.port), ("through illm", port)]
        ask(engine.port, folder, chat, prompts, concurrency)  # its first answers are slow
        for number in range(1, rounds + 1):
            ways.reverse()  # whoever comes first might be the slower
            for way, there in ways:
                found[way].append(ask(there, folder, chat, prompts, concurrency))
                said = ", ".join(f"{title} {found[way][-1][name]:.2f}" for name, title in TITLES.items())
                print(f"{number}/{rounds} {way}: {said}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between this document's marks")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rounds = measured(options.rounds, options.prompts, options.concurrency, Path(folder))
    except install.CannotBeHad as why:
        print(f"vLLM can't be had here: {why}", file=sys.stderr)
        return install.CANNOT_BE_HAD
    except NotReady as why:
        print(f"vLLM does not start: {why}", file=sys.stderr)
        return 1
    text = (
        f"{table(rounds)}\n\nBy `vllm bench serve` ({options.prompts} prompts, {options.concurrency} at a time, vLLM "
        f"{install.VLLM} on the CPU with a tiny model), medians of {options.rounds} rounds, direct and through illm in "
        f"turn."
    )
    print(f"\n{text}")
    if options.write:
        write_between_marks(options.write, text, MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(to_its_end(main))
