"""The token table as a raw file: f16, row-major [rows, hidden], little-endian, without a header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from export.decoder.checkpoint import DecoderCheckpoint
from export.decoder.external_data import DataFile
from export.decoder.integer_stream import BLOCK_BYTES
from export.decoder.stored_linears import as_f16


def write_token_embeds(checkpoint: DecoderCheckpoint, path: Path, advance: Callable[[int], None]) -> None:
    """Writes the table block by block; ExportError for a value that f16 cannot hold, OutputError for a full disk."""
    with DataFile(path) as file:
        for block in checkpoint.embed_blocks(BLOCK_BYTES):
            file.write(as_f16("the token table", block))
            advance(block.size)
