"""What an engine's log tells: lines as the engines wrote them (SGLang's, TGI's and TEI's from their users' reports)."""

import pytest

from launchers.engines.table import ENGINES, OUT_OF_MEMORY, PORT_TAKEN
from launchers.spec import Kind

PHASES: list[tuple[Kind, str, str | None, str | None]] = [
    ("vllm", "model.safetensors:  12%|█▏        | 600M/4.98G [00:05<00:41, 106MB/s]", "downloading", "12"),
    ("vllm", "Fetching 4 files:  25%|██▌       | 1/4 [00:00<00:00,  9.10it/s]", "downloading", "25"),
    (
        "vllm",
        "(Worker pid=9) INFO 11-21 10:59:35 [cpu_model_runner.py:68] Starting to load model /m...",
        "loading weights",
        None,
    ),
    (
        "vllm",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  1.25it/s]",
        "loading weights",
        "50",
    ),
    ("vllm", "Loading pt checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 17.46it/s]", "loading weights", "100"),
    (
        "vllm",
        "(Worker pid=9) INFO 11-21 10:59:35 [default_loader.py:501] Loading weights took 0.01 seconds",
        "warming up",
        None,
    ),
    (
        "vllm",
        "(Worker pid=9) INFO 11-21 10:59:36 [cpu_model_runner.py:87] Warming up model for the compilation...",
        "compiling",
        None,
    ),
    ("vllm", "INFO 06-02 00:51:49 [backends.py:1148] Dynamo bytecode transform time: 8.52 s", "compiling", None),
    (
        "vllm",
        "WARNING 11-21 11:12:55 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs",
        None,
        None,
    ),
    (
        "vllm",
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  51%|█████     | 34/67 [00:02<00:02]",
        "capturing CUDA graphs",
        "51",
    ),
    (
        "vllm",
        "INFO 11-21 11:00:08 [core.py:402] init engine (profile, create kv cache, warmup model) took 31.87 s",
        "warming up",
        None,
    ),
    (
        "vllm",
        "(APIServer pid=9) INFO 11-21 11:00:08 [entry.py:140] Starting vLLM server on http://127.0.0.1:18801",
        "listening",
        None,
    ),
    ("sglang", "[2025-12-23 14:18:01] Load weight begin. avail mem=46.81 GB", "loading weights", None),
    (
        "sglang",
        "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:00<00:01,  2.32it/s]",
        "loading weights",
        "25",
    ),
    (
        "sglang",
        "[2025-03-27 21:33:31 TP0] Capture cuda graph begin. This can take up to several minutes.",
        "capturing CUDA graphs",
        None,
    ),
    (
        "sglang",
        "Capturing batches (bs=1 avail_mem=11.18 GB): 100%|██████████| 36/36 [00:10<00:00,  3.37it/s]",
        "capturing CUDA graphs",
        "100",
    ),
    (
        "sglang",
        "[2025-11-10 19:59:09 TP1] Capture cuda graph end. Time elapsed: 11.35 s. mem usage=1.04 GB.",
        "warming up",
        None,
    ),
    (
        "tgi",
        "2023-07-19T16:06:43Z  INFO text_generation_launcher: Download file: pytorch_model-00001-of-00003.bin",
        "downloading",
        None,
    ),
    ("tgi", "INFO download: text_generation_launcher: Download: [1/3] -- ETA: 0:04:10", "downloading", None),
    (
        "tgi",
        "2024-10-16T10:48:41Z  INFO shard-manager: text_generation_launcher: Waiting for shard to be ready... rank=2",
        "loading weights",
        None,
    ),
    ("tgi", "INFO shard-manager: text_generation_launcher: Shard ready in 12.0s rank=0", "warming up", None),
    ("llamacpp", "0.00.007.455 I srv    load_model: loading model 'gguf/tiny-chat.gguf'", "loading weights", None),
    (
        "llamacpp",
        "0.00.198.495 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 262144",
        "warming up",
        None,
    ),
    (
        "llamacpp",
        "common_init_from_params: warming up the model with an empty run - please wait ...",
        "warming up",
        None,
    ),
    ("llamacpp", "0.00.201.800 I srv  llama_server: listening on http://127.0.0.1:18802", "listening", None),
    ("transformers", "[transformers] Loading /m/tiny-chat@main", "loading weights", None),
    ("transformers", "Loading weights:  40%|████      | 59/147 [00:00<00:00, 21612.55it/s]", "loading weights", "40"),
    (
        "infinity",
        "INFO     2026-11-21 11:01:17,774 infinity_emb INFO: model=`/m/tiny-embed` selected, using engine=`torch`",
        "loading weights",
        None,
    ),
    (
        "infinity",
        "INFO     2026-11-21 11:01:18,321 infinity_emb INFO: model warmed up, between 236.41-13495.47",
        "warming up",
        None,
    ),
    (
        "tei",
        "2025-02-25T11:40:08Z  INFO text_embeddings_router: router/src/lib.rs:230: Starting model backend",
        "loading weights",
        None,
    ),
    (
        "tei",
        "2026-06-14T10:09:55Z  INFO text_embeddings_router: router/src/lib.rs:258: Warming up model",
        "warming up",
        None,
    ),
]


@pytest.mark.parametrize(("kind", "line", "text", "percent"), PHASES)
def test_phases(kind: Kind, line: str, text: str | None, percent: str | None) -> None:
    matches = [(phase.text, match) for phase in ENGINES[kind].phases if (match := phase.pattern.search(line))]
    if text is None:
        assert not matches
        return
    shown, match = matches[0]
    assert (shown, match.groupdict().get("percent")) == (text, percent)


def test_a_phase_may_count_instead_of_telling_percent() -> None:
    (match,) = [match for phase in ENGINES["tgi"].phases if (match := phase.pattern.search("Download: [2/3] -- ETA"))]
    assert (match["done"], match["total"]) == ("2", "3")


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 98] Address already in use",
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 41351): address already in use",
        "E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 41351",
        "Error: listen tcp 127.0.0.1:41351: bind: address already in use",
        "docker: Error response from daemon: Bind for 127.0.0.1:9000 failed: port is already allocated.",
    ],
)
def test_a_taken_port(line: str) -> None:
    assert PORT_TAKEN.search(line)
    assert not OUT_OF_MEMORY.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "ValueError: Free memory on device cuda:0 (3.1/23.5 GiB) is less than desired GPU memory utilization",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "Error: model requires more system memory (9.1 GiB) than is available (3.2 GiB)",
    ],
)
def test_out_of_memory(line: str) -> None:
    assert OUT_OF_MEMORY.search(line)
    assert not PORT_TAKEN.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "gguf_init_from_file: failed to open GGUF file 'gguf/nope.gguf' (No such file or directory)",
        "INFO 11-21 11:00:05 [cpu_worker.py:260] Explicitly set (1.0/13.84) GiB for KV cache on node 0.",
        "Available RAM: 20.93 GiB.",
        "Uvicorn running on http://127.0.0.1:41351 (Press CTRL+C to quit)",
    ],
)
def test_neither(line: str) -> None:
    assert not OUT_OF_MEMORY.search(line)
    assert not PORT_TAKEN.search(line)
