"""Autoregressive decoders behind one protocol over numbered slots.

decoder = open_decoder(bundle, slots=2)
logits = decoder.prefill(0, inputs_embeds)[-1]
logits = decoder.decode(0, [int(logits.argmax())])[-1]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.bundle import Bundle
from runtime.decoder.choice import DecoderKind, FoundDevice, find_device
from runtime.decoder.onnx_decoder import OnnxDecoder, OnnxDecoderFiles
from runtime.decoder.options import CudaOptions
from runtime.decoder.ort_session import SessionSettings
from runtime.decoder.protocol import Decoder, FusingDecoder, PreprocessingDecoder, SamplingDecoder, TileMaker
from runtime.decoder.threads import cores_are_ours, default_threads
from runtime.errors import BundleError, InputError

if TYPE_CHECKING:
    from runtime.decoder.cuda import CudaDecoderFiles

__all__ = [
    "CudaOptions",
    "Decoder",
    "DecoderKind",
    "FoundDevice",
    "FusingDecoder",
    "OnnxDecoder",
    "OnnxDecoderFiles",
    "PreprocessingDecoder",
    "SamplingDecoder",
    "SessionSettings",
    "TileMaker",
    "cores_are_ours",
    "default_threads",
    "find_device",
    "open_decoder",
]

MAX_THREADS = 256


def open_decoder(
    bundle: Bundle,
    *,
    kind: DecoderKind = "auto",
    threads: int | None = None,
    slots: int = 1,
    spin: bool | None = None,
    cuda: CudaOptions | None = None,
    found: FoundDevice | None = None,
) -> Decoder:
    """Opens a bundle's decoder; "auto" takes "cuda" when the bundle has it and a device is found, else "onnx".

    threads: None for the physical cores that the process may use. spin: whether waiting threads burn their core, faster
    by some percent on an idle machine and far slower on a shared one; None spins on isolated CPUs only. cuda: settings
    of the decoder "cuda". found: its device, where `find_device` was asked before; closed with the decoder, or here
    when opening it fails.
    Raises EngineError without a device or onnxruntime, BundleError when the bundle has no such decoder, InputError,
    MemoryLimitError.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"{threads} threads, expected 1 to {MAX_THREADS}")
    options = cuda or CudaOptions()
    found = found or find_device(bundle, kind, options)
    if found is not None:
        return _open_cuda(bundle, options, found, slots)
    settings = SessionSettings(
        threads=default_threads() if threads is None else threads,
        spin=cores_are_ours() if spin is None else spin,
    )
    return OnnxDecoder(_onnx_files(bundle), settings, slots=slots)


def _open_cuda(bundle: Bundle, options: CudaOptions, found: FoundDevice, slots: int) -> Decoder:
    from runtime.decoder.cuda import CudaDecoder

    try:
        return CudaDecoder(_cuda_files(bundle), options, found.device, slots=slots, owned=found.owned)
    except BaseException:
        found.close()
        raise


def _cuda_files(bundle: Bundle) -> CudaDecoderFiles:
    from runtime.decoder.cuda import CudaDecoderFiles

    section, quantization = bundle.manifest.decoder, bundle.manifest.quantization
    assert section.t16 is not None, "find_device checks it"
    rows, _ = section.token_embeds.shape
    return CudaDecoderFiles(
        weights=bundle.file(section.t16.file),
        token_embeds=bundle.file(section.token_embeds.file),
        token_embeds_dtype=section.token_embeds.dtype,
        embed_rows=rows,
        hidden=section.hidden,
        layers=section.layers,
        heads=section.heads,
        kv_heads=section.kv_heads,
        head_dim=section.head_dim,
        ffn=section.ffn,
        vocab=section.vocab,
        max_seq_len=section.max_seq_len,
        rope_frequencies=section.rope_frequencies,
        rms_eps=section.rms_eps,
        group_size=quantization.group_size,
        head_bits=quantization.head_bits,
        activations=section.t16.activations,
        digest=quantization.digest,
    )


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
