"""One measured process of ``cpu_decode.py``: loads a decoder, prefills, decodes, and reads its own memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PREFILL_REPEATS = 3  # the first one warms caches and is left out


class Engine(Protocol):
    """The two calls that are timed; both leave the row of the last position's logits."""

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        """Empties the KV cache and fills it with these tokens."""

    def step(self, token: int) -> np.ndarray:
        """Appends one token."""


class Ours:
    """``runtime.decoder`` on what the export wrote."""

    def __init__(self, folder: Path, threads: int, spin: bool) -> None:
        from runtime.decoder import OnnxDecoder, OnnxDecoderFiles, SessionSettings

        group = json.loads((folder / "record.json").read_text(encoding="ascii"))["decoder"]
        table = group["token_embeds"]
        files = OnnxDecoderFiles(
            model=folder / group["onnx"]["file"],
            token_embeds=folder / table["file"],
            token_embeds_dtype=table["dtype"],
            embed_rows=table["shape"][0],
            **{key: group[key] for key in ("hidden", "layers", "kv_heads", "head_dim", "vocab", "max_seq_len")},
        )
        self._decoder = OnnxDecoder(files, SessionSettings(threads=threads, spin=spin))

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._decoder.truncate(0, 0)
        return self._decoder.prefill(0, self._decoder.embed(ids))[0]

    def step(self, token: int) -> np.ndarray:
        return self._decoder.decode(0, [token])[0]


class LlamaCpp:
    """llama.cpp through llama-cpp-python's C interface; its wait policy comes from the environment."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp does not open {path}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        return self._decode(ids.tolist())

    def step(self, token: int) -> np.ndarray:
        return self._decode([token])

    def _decode(self, ids: list[int]) -> np.ndarray:
        """llama_batch_get_one asks for the logits of the last token alone."""
        tokens = (self._lib.llama_token * len(ids))(*ids)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama_decode failed")
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, -1), shape=(self._vocab,))


def measure(make: Callable[[], Engine], weights: list[Path], *, prompt: int, steps: int, vocab: int) -> dict[str, Any]:
    """Timings and memory of one engine in this process; call once per process."""
    started = time.perf_counter()
    engine = make()
    load_s = time.perf_counter() - started
    ids = np.random.default_rng(1).integers(0, vocab, prompt)
    prefills, decodes = [], []
    for _ in range(PREFILL_REPEATS):
        started = time.perf_counter()
        logits = engine.prefill(ids)
        prefills.append(time.perf_counter() - started)
    for _ in range(steps):
        token = int(logits.argmax())
        started = time.perf_counter()
        logits = engine.step(token)
        decodes.append(time.perf_counter() - started)
    return {
        "load_s": round(load_s, 3),
        "first_prefill_tokens_per_s": round(prompt / prefills[0], 1),
        "prefill_tokens_per_s": round(prompt / float(np.median(prefills[1:])), 2),
        "decode_tokens_per_s": round(1 / float(np.median(decodes)), 2),
        "decode_best_tokens_per_s": round(1 / min(decodes), 2),
        **memory(weights),
    }


def memory(weights: list[Path]) -> dict[str, int]:
    """This process's memory in bytes: peak RSS, PSS, PSS without the mapped weight files, anonymous PSS."""
    mapped = {str(path.resolve()) for path in weights}
    total = without = anonymous = 0
    current = ""
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            current = fields[5] if len(fields) == 6 else ""
        elif fields[0] == "Pss:":
            total += int(fields[1]) * 1024
            without += 0 if current in mapped else int(fields[1]) * 1024
        elif fields[0] == "Anonymous:":
            anonymous += int(fields[1]) * 1024
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "peak_rss_bytes": peak,
        "pss_bytes": total,
        "pss_without_weights_bytes": without,
        "anonymous_bytes": anonymous,
    }
