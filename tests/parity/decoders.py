"""Both sides of a parity rung that generates: torch on the bundle's integers, the bundle's decoder at full accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.decoder import open_decoder_checkpoint, write_decoder
from runtime.bundle import Bundle
from runtime.decoder import OnnxDecoder, SessionSettings
from tests.decoder_models import decoder_files, dequantize_


def dequantize_decoder(model: Any, family: str, group_size: int) -> None:
    """Torch's decoder gets the values that the bundle's integers stand for; tower and projector stay as they are."""
    if family == "nvila":
        dequantize_(model.get_llm(), group_size)
        return
    body = model.get_model()
    tower, projector = body.vision_tower, body.mm_projector
    del body.vision_tower, body.mm_projector
    dequantize_(model, group_size)
    body.vision_tower, body.mm_projector = tower, projector


def exact_decoder(checkpoint: Path, out: Path, group_size: int) -> Any:
    """An ``open_decoder`` that opens the checkpoint's decoder, written at accuracy level 0."""

    out.mkdir()

    def open_exact(bundle: Bundle, *, slots: int, **options: Any) -> OnnxDecoder:
        with open_decoder_checkpoint(checkpoint) as opened:
            length = bundle.manifest.decoder.max_seq_len
            record = write_decoder(opened, out, max_seq_len=length, group_size=group_size, accuracy_level=0)
        assert record["quantization"]["digest"] == bundle.manifest.quantization.digest
        return OnnxDecoder(decoder_files(out, record), SessionSettings(threads=1, spin=False), slots=slots)

    return open_exact
