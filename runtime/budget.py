"""How much memory a bundle takes, from its manifest alone, and whether this machine has it.

Pure arithmetic: nothing is opened. `Session.open` asks before it loads anything; a board's limits come from `jetson`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.bundle.manifest import GRAPH_DATA_SUFFIX, DecoderSection, Manifest, VisionPrecision
from runtime.errors import MemoryLimitError

PROCESS_BYTES = 80 << 20  # interpreter, numpy, tokenizer, engine library
_DRIVER_BYTES = 48 << 20  # of a CUDA decoder: graphs, modules, and the buffer that weights are uploaded through
_SPLIT_POSITIONS, _STEP_TOKENS = 64, 8  # of its attention over the cache
_ACTIVATIONS_PER_CHANNEL = 16  # f32 rows alive at once in one transformer layer: q, k, v, MLP of 4, residuals
_SCORE_ROWS = 32  # attention scores of 16 heads, before and after the softmax
_PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes by purpose. ``mapped_bytes`` is read from disk as needed and can be dropped, so it is not in the total.

    ``device_buffer_bytes``: what a CUDA decoder has beside its weights and cache.
    """

    decoder_bytes: int
    kv_cache_bytes: int
    vision_bytes: int
    activation_bytes: int
    process_bytes: int
    mapped_bytes: int
    device_buffer_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What must be there at once."""
        device = self.decoder_bytes + self.kv_cache_bytes + self.device_buffer_bytes
        return device + self.vision_bytes + self.activation_bytes + self.process_bytes

    def beside_device(self) -> Budget:
        """What is left for the host when the decoder's device has memory of its own."""
        return replace(self, decoder_bytes=0, kv_cache_bytes=0, device_buffer_bytes=0)


def memory_budget(
    manifest: Manifest,
    *,
    kind: str = "onnx",
    slots: int = 1,
    tiles_at_once: int = 1,
    kv: str = "f16",
    embeddings: str = "auto",
) -> Budget:
    """What a session on this bundle takes at its peak.

    ``slots``: conversations that are kept in the cache. ``tiles_at_once``: tiles that the vision engine runs together.
    ``kv``, ``embeddings``: as in `runtime.CudaOptions`, for kind "cuda" ("auto" counts as the smaller form).
    An estimate on the safe side: weights once as packed by the engine, the whole cache at ``max_seq_len``.
    """
    decoder, tower = manifest.decoder, manifest.vision.tower
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    vision = sum(_graph_bytes(sizes, name, tower.precision) for name in (tower.file, manifest.vision.projector.file))
    # A head in f16 is widened by the engine when it loads the graph.
    widened = 2 * decoder.vocab * decoder.hidden if manifest.quantization.head_bits == 16 else 0
    rows = tower.patches_per_tile
    vision_peak = 4 * tiles_at_once * rows * (tower.channels * _ACTIVATIONS_PER_CHANNEL + rows * _SCORE_ROWS)
    if kind == "cuda":
        return Budget(
            decoder_bytes=_cuda_weights(manifest, sizes, embeddings),
            kv_cache_bytes=_cuda_cache(decoder, kv, decoder.max_seq_len) * slots,
            vision_bytes=vision,
            activation_bytes=vision_peak,
            process_bytes=PROCESS_BYTES,
            mapped_bytes=0,
            device_buffer_bytes=_cuda_buffers(decoder, kv),
        )
    chunk = min(_PREFILL_CHUNK, decoder.max_seq_len)
    prefill = 4 * chunk * (decoder.hidden * 8 + decoder.ffn * 3 + decoder.heads * decoder.max_seq_len)
    return Budget(
        decoder_bytes=sizes[decoder.onnx.data] + widened if decoder.onnx else 0,
        kv_cache_bytes=4 * 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * decoder.max_seq_len * slots,
        vision_bytes=vision,
        activation_bytes=max(vision_peak, prefill),
        process_bytes=PROCESS_BYTES,
        mapped_bytes=sizes[decoder.token_embeds.file],
    )


def _cuda_weights(manifest: Manifest, sizes: Mapping[str, int], embeddings: str) -> int:
    """The packed file, the rotation of every position, and the token table, whose form the options choose."""
    decoder = manifest.decoder
    row = 2 * decoder.hidden if embeddings == "f16" else decoder.hidden + 4
    packed = sizes[decoder.t16.file] if decoder.t16 is not None else 0
    return packed + decoder.max_seq_len * decoder.head_dim * 4 + decoder.token_embeds.shape[0] * row


def _cuda_cache(decoder: DecoderSection, kv: str, positions: int) -> int:
    """Keys and values of every layer: 16 bits a value, or 8 and a scale per head."""
    row = decoder.head_dim + 2 if kv == "i8" else 2 * decoder.head_dim
    return 2 * decoder.layers * decoder.kv_heads * positions * row


def _cuda_buffers(decoder: DecoderSection, kv: str) -> int:
    """Rows of a chunk in every stage of a layer, logits and their partial sums of a step, and the driver's own."""
    chunk = min(_PREFILL_CHUNK, decoder.max_seq_len)
    wide = decoder.heads * decoder.head_dim
    rows = chunk * (12 * decoder.hidden + 4 * wide + 2 * decoder.ffn + 4)
    staged = 4 * chunk * decoder.kv_heads * decoder.head_dim if kv == "i8" else 0
    splits = -(-decoder.max_seq_len // _SPLIT_POSITIONS)
    partials = 4 * _STEP_TOKENS * decoder.heads * splits * (decoder.head_dim + 4)
    head = _STEP_TOKENS * (decoder.vocab * 5 + 4 * decoder.hidden) + 5 * decoder.vocab
    return rows + staged + partials + head + _DRIVER_BYTES


def _graph_bytes(sizes: Mapping[str, int], graph: str, precision: VisionPrecision) -> int:
    """Weights in the graph are stored in 16 bits at best and widened to what it computes in; others stay mapped."""
    apart = sizes.get(f"{graph}{GRAPH_DATA_SUFFIX}")
    if apart is not None:
        return sizes[graph] + apart
    return sizes[graph] * (2 if precision == "fp32" else 1)


def check_budget(budget: Budget, available_bytes: int) -> None:
    """Raises MemoryLimitError that names the largest part, and what makes it smaller, when too little is available."""
    if budget.total_bytes <= available_bytes:
        return
    parts = {
        "the decoder's weights": budget.decoder_bytes,
        "the KV cache": budget.kv_cache_bytes,
        "the vision graphs": budget.vision_bytes,
        "intermediate results": budget.activation_bytes + budget.device_buffer_bytes,
    }
    name, size = max(parts.items(), key=lambda part: part[1])
    smaller = {
        "the KV cache": "build the bundle with a smaller --max-seq-len",
        "the vision graphs": "build the bundle with --vision-precision int8",
    }
    raise MemoryLimitError(
        f"the model takes about {_mib(budget.total_bytes)} MiB, {_mib(available_bytes)} MiB are free; "
        f"most of it is {name} ({_mib(size)} MiB)",
        hint=smaller.get(name, "close other programs, or use a smaller model"),
    )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: MemAvailable, or less where a control group limits it.

    ``root`` stands for the file system's root (for tests). None where neither can be read.
    """
    found = [value for value in (_mem_available(root), *_cgroup_room(root)) if value is not None]
    return min(found) if found else None


def _mem_available(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_room(root: Path) -> list[int | None]:
    """Room in the control groups of version 2 and 1; page cache that can be dropped counts as room."""
    base = root / "sys/fs/cgroup"
    two = _room(base / "memory.max", base / "memory.current", base / "memory.stat", "inactive_file")
    one = base / "memory"
    old = _room(
        one / "memory.limit_in_bytes", one / "memory.usage_in_bytes", one / "memory.stat", "total_inactive_file"
    )
    return [two, old]


def _room(limit: Path, used: Path, statistics: Path, droppable: str) -> int | None:
    limit_text, used_text = _read(limit).strip(), _read(used).strip()
    if not limit_text.isdigit() or not used_text.isdigit():  # "max", or not there
        return None
    fields = dict(line.split()[:2] for line in _read(statistics).splitlines() if len(line.split()) >= 2)
    free = int(fields.get(droppable, "0"))
    return max(0, int(limit_text) - int(used_text) + free)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _mib(size: int) -> int:
    return size >> 20
