"""Writes a decoder's files: token table, graph and external data for ONNX Runtime, T16 weights for the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx

from export.decoder.checkpoint import DecoderCheckpoint, Linear
from export.decoder.external_data import DISK_HINT, DataFile, ExternalData
from export.decoder.graph import DecoderGraph
from export.decoder.integer_stream import IntegerStream
from export.decoder.quantize import check_group_size, choose_group_size
from export.decoder.stored_linears import LinearStore
from export.decoder.t16 import HEAD, MATRICES, T16File
from export.decoder.token_embeds import write_token_embeds
from runtime.bundle.manifest import Activations, DecoderKind
from runtime.errors import ExportError, OutputError

FOLDER = "decoder"
GRAPH = f"{FOLDER}/decoder.onnx"
DATA = f"{FOLDER}/decoder.onnx.data"
T16 = f"{FOLDER}/t16.safetensors"
TOKEN_EMBEDS = f"{FOLDER}/token_embeds.bin"
ACCURACY_LEVELS = (0, 1, 4)  # f32, f32 by the engine's choice, int8 activations

Progress = Callable[[int, int], None]


def write_decoder(
    checkpoint: DecoderCheckpoint,
    out_dir: Path,
    *,
    max_seq_len: int,
    group_size: int | None = None,
    kinds: Sequence[DecoderKind] = ("onnx",),
    accuracy_level: int = 4,
    activations: Activations = "f16",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint's decoder in int4 into ``out_dir/decoder/``, in one form or in two of the same integers.

    Linears that the checkpoint stores as integers keep them; floats are rounded to nearest, the head in the
    checkpoint's ``head_bits``. max_seq_len: positions of the KV cache, up to what the checkpoint was made for.
    group_size: 128, 64 or 32, dividing every input width; None takes that of the stored integers, else 128.
    kinds: "onnx" for ONNX Runtime, "cuda" for the kernels (`export.decoder.kinds` says what they take).
    accuracy_level of "onnx": 4 (int8 activations) or 0 (f32). activations of "cuda". progress(done, total) counts
    weight values. Returns the manifest groups ``decoder`` and ``quantization``, and ``files``, the paths relative to
    ``out_dir``. Memory: a few blocks of rows, one matrix of stored integers and, for "cuda", one matrix of a layer as
    bytes, whatever the model's size. Raises ExportError, OutputError; files that were begun stay behind for the caller
    to remove.
    """
    group_size = choose_group_size(group_size, checkpoint.group_size)
    _check_request(checkpoint, max_seq_len, group_size, accuracy_level)
    advance = _counter(checkpoint, progress)
    try:
        (out_dir / FOLDER).mkdir(exist_ok=True)
    except OSError as problem:
        raise OutputError(f"{out_dir / FOLDER}: {problem.strerror or problem}", hint=DISK_HINT) from problem
    write_token_embeds(checkpoint, out_dir / TOKEN_EMBEDS, advance)
    integers = IntegerStream(checkpoint, group_size, advance)
    with ExitStack() as stack:
        t16 = None
        if "cuda" in kinds:
            t16 = stack.enter_context(T16File(out_dir / T16, checkpoint, group_size, activations))
        if "onnx" in kinds:
            _write_onnx(checkpoint, out_dir, integers, t16, max_seq_len=max_seq_len, accuracy_level=accuracy_level)
        elif t16 is not None:
            _write_t16(checkpoint, integers, t16)
        digest = integers.digest.hexdigest()
        if t16 is not None:
            t16.finish(digest)
    forms = {
        "kinds": list(kinds),
        "onnx": {"file": GRAPH, "data": DATA, "accuracy_level": accuracy_level} if "onnx" in kinds else None,
        "t16": {"file": T16, "activations": activations} if "cuda" in kinds else None,
    }
    return {
        "decoder": _decoder_group(checkpoint, max_seq_len) | forms,
        "quantization": {
            "bits": 4,
            "group_size": group_size,
            "method": checkpoint.method,
            "digest": digest,
            "head_bits": checkpoint.head_bits,
        },
        "files": [*([GRAPH, DATA] if "onnx" in kinds else []), *([T16] if "cuda" in kinds else []), TOKEN_EMBEDS],
    }


def _write_onnx(
    checkpoint: DecoderCheckpoint,
    out_dir: Path,
    integers: IntegerStream,
    t16: T16File | None,
    *,
    max_seq_len: int,
    accuracy_level: int,
) -> None:
    """Graph and external data; ``t16`` gets the same integers."""
    with DataFile(out_dir / DATA) as file:
        external = ExternalData(file)
        graph = DecoderGraph(
            checkpoint,
            external,
            LinearStore(checkpoint, external, integers, t16),
            group_size=integers.group_size,
            accuracy_level=accuracy_level,
            max_seq_len=max_seq_len,
        )
        model = graph.build()
    _write_graph(model, out_dir / GRAPH)


def _write_t16(checkpoint: DecoderCheckpoint, integers: IntegerStream, t16: T16File) -> None:
    """The T16 weights alone."""

    def store(name: str, linears: Sequence[Linear], bits: int) -> None:
        for _ in t16.through(name, linears, integers.matrix(linears, bits)):
            pass

    for index in range(checkpoint.config.layers):
        layer = checkpoint.layer(index)
        for matrix, parts in MATRICES.items():
            store(f"layers.{index}.{matrix}", [layer[part] for part in parts], 4)
    store(HEAD, [checkpoint.head()], checkpoint.head_bits)


def _check_request(checkpoint: DecoderCheckpoint, max_seq_len: int, group_size: int, accuracy_level: int) -> None:
    limit = checkpoint.config.max_context
    if not 1 <= max_seq_len <= limit:
        message = f"max_seq_len is {max_seq_len}, the checkpoint was made for 1 to {limit} positions"
        if checkpoint.config.rope.kind == "dynamic":
            message += "; beyond them dynamic NTK scaling changes the rotation with the length"
        raise ExportError(message, hint=f"--max-seq-len {limit}")
    if accuracy_level not in ACCURACY_LEVELS:
        raise ExportError(f"accuracy level {accuracy_level} is none of {ACCURACY_LEVELS}", hint="4 is the default")
    for linear in checkpoint.linears():
        check_group_size(linear.name, linear.k, group_size)


def _counter(checkpoint: DecoderCheckpoint, progress: Progress | None) -> Callable[[int], None]:
    total = checkpoint.embed_rows * checkpoint.config.hidden + sum(each.n * each.k for each in checkpoint.linears())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance


def _write_graph(model: onnx.ModelProto, path: Path) -> None:
    with DataFile(path) as file:
        file.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))  # by path, so that it finds the external data


def _decoder_group(checkpoint: DecoderCheckpoint, max_seq_len: int) -> dict[str, Any]:
    c = checkpoint.config
    return {
        "hidden": c.hidden,
        "layers": c.layers,
        "heads": c.heads,
        "kv_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "ffn": c.ffn,
        "vocab": checkpoint.vocab,
        "max_seq_len": max_seq_len,
        "rope_theta": c.rope.theta,
        "rope_frequencies": [float(frequency) for frequency in c.rope.frequencies(c.head_dim)],
        "rms_eps": c.rms_eps,
        "token_embeds": {"file": TOKEN_EMBEDS, "dtype": "f16", "shape": [checkpoint.embed_rows, c.hidden]},
    }
