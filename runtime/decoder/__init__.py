"""Autoregressive decoders behind one protocol over numbered slots.

decoder = open_decoder(bundle, slots=2)
logits = decoder.prefill(0, inputs_embeds)[-1]
logits = decoder.decode(0, [int(logits.argmax())])[-1]
"""

from __future__ import annotations

from typing import Literal

from runtime.bundle import Bundle
from runtime.decoder.onnx_decoder import OnnxDecoder, OnnxDecoderFiles
from runtime.decoder.ort_session import SessionSettings
from runtime.decoder.protocol import Decoder
from runtime.decoder.threads import cores_are_ours, default_threads
from runtime.errors import BundleError, EngineError, InputError

__all__ = [
    "Decoder",
    "DecoderKind",
    "OnnxDecoder",
    "OnnxDecoderFiles",
    "SessionSettings",
    "cores_are_ours",
    "default_threads",
    "open_decoder",
]

DecoderKind = Literal["auto", "onnx", "cuda"]
MAX_THREADS = 256


def open_decoder(
    bundle: Bundle,
    *,
    kind: DecoderKind = "auto",
    threads: int | None = None,
    slots: int = 1,
    spin: bool | None = None,
) -> Decoder:
    """Opens a bundle's decoder; "auto" takes the one that can run here.

    threads: None for the physical cores that the process may use. spin: whether waiting threads burn their core, faster
    by some percent on an idle machine and far slower on a shared one; None spins on isolated CPUs only.
    Raises EngineError for "cuda" and without onnxruntime, BundleError when the bundle has no such decoder, InputError.
    """
    if kind == "cuda":
        raise EngineError("the decoder 'cuda' is not available in this version", hint="decoder='onnx' runs on the CPU")
    if kind not in ("auto", "onnx"):
        raise InputError(f"decoder {kind!r} is not known", hint="one of auto, onnx, cuda")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"{threads} threads, expected 1 to {MAX_THREADS}")
    settings = SessionSettings(
        threads=default_threads() if threads is None else threads,
        spin=cores_are_ours() if spin is None else spin,
    )
    return OnnxDecoder(_onnx_files(bundle), settings, slots=slots)


def _onnx_files(bundle: Bundle) -> OnnxDecoderFiles:
    section = bundle.manifest.decoder
    if section.onnx is None:
        kinds = ", ".join(section.kinds)
        raise BundleError(f"{bundle.path}: has no decoder 'onnx', only {kinds}", hint="build with --decoder onnx")
    bundle.file(section.onnx.data)  # opened by the engine; refused here when it is not one of the bundle's files
    rows, _ = section.token_embeds.shape
    return OnnxDecoderFiles(
        model=bundle.file(section.onnx.file),
        token_embeds=bundle.file(section.token_embeds.file),
        token_embeds_dtype=section.token_embeds.dtype,
        embed_rows=rows,
        hidden=section.hidden,
        layers=section.layers,
        kv_heads=section.kv_heads,
        head_dim=section.head_dim,
        vocab=section.vocab,
        max_seq_len=section.max_seq_len,
    )
