"""Open the engines of a session, in the order in which a failure costs least. Runs on the owner thread."""

from __future__ import annotations

from typing import Literal

from runtime.budget import available_memory, check_budget, memory_budget
from runtime.bundle import Bundle
from runtime.decoder import open_decoder
from runtime.detokenize import decoder_description, decoder_steps
from runtime.pipeline import Pipeline
from runtime.prompt import PromptEncoder
from runtime.vision import open_vision

DecoderChoice = Literal["auto", "onnx", "cuda"]


def open_pipeline(bundle: Bundle, decoder: DecoderChoice, *, threads: int | None, slots: int) -> Pipeline:
    """Engines for a checked bundle; what was opened is closed again when a later one fails.

    Raises MemoryLimitError before anything large is opened.
    """
    available = available_memory()
    if available is not None:
        kind = "cuda" if decoder == "cuda" else "onnx"
        check_budget(memory_budget(bundle.manifest, kind=kind, slots=slots), available)
    encoder = PromptEncoder(bundle)
    decoder_steps(decoder_description(encoder.tokenizer))  # refuses a tokenizer whose text cannot be streamed
    text = open_decoder(bundle, kind=decoder, threads=threads, slots=slots)
    try:
        vision = open_vision(bundle, threads=threads)
    except BaseException:
        text.close()
        raise
    return Pipeline(bundle, encoder, vision, text, slots)
