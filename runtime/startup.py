"""Open the engines of a session, in the order in which a failure costs least. Runs on the owner thread."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from runtime.budget import available_memory, check_budget, memory_budget
from runtime.bundle import Bundle
from runtime.decoder import CudaOptions, FoundDevice, find_device, open_decoder
from runtime.detokenize import decoder_description, decoder_steps
from runtime.pipeline import Pipeline
from runtime.prompt import PromptEncoder
from runtime.vision import open_vision

DecoderChoice = Literal["auto", "onnx", "cuda"]


def open_pipeline(
    bundle: Bundle,
    decoder: DecoderChoice,
    *,
    threads: int | None,
    answers: int,
    chats: int,
    cuda: CudaOptions | None = None,
) -> Pipeline:
    """Engines for a checked bundle; what was opened is closed again when a later one fails.

    ``answers``, ``chats``: KV slots for single answers and for conversations. Raises MemoryLimitError before anything
    large is opened.
    """
    options, slots = cuda or CudaOptions(), answers + chats
    with ExitStack() as stack:
        found = find_device(bundle, decoder, options)
        if found is not None:
            stack.callback(found.close)
        _check_memory(bundle, options, found, slots)
        encoder = PromptEncoder(bundle)
        decoder_steps(decoder_description(encoder.tokenizer))  # refuses a tokenizer whose text cannot be streamed
        text = open_decoder(bundle, kind=decoder, threads=threads, slots=slots, cuda=options, found=found)
        stack.callback(text.close)
        vision = open_vision(bundle, threads=threads)
        stack.callback(vision.close)
        pipeline = Pipeline(bundle, encoder, vision, text, slots=slots, answers=answers)
        stack.pop_all()
    return pipeline


def _check_memory(bundle: Bundle, options: CudaOptions, found: FoundDevice | None, slots: int) -> None:
    """What the host must hold; a device with memory of its own is asked by its decoder."""
    available = available_memory()
    if available is None:
        return
    manifest = bundle.manifest
    if found is None:
        check_budget(memory_budget(manifest, slots=slots), available)
        return
    budget = memory_budget(manifest, kind="cuda", slots=slots, kv=options.kv, embeddings=options.embeddings)
    check_budget(budget if found.device.integrated else budget.beside_device(), available)
