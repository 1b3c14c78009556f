"""The token table as a raw file: f16, row-major [rows, hidden], little-endian, without a header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.decoder.checkpoint import DecoderCheckpoint
from export.decoder.external_data import DataFile
from export.decoder.stored_linears import BLOCK_BYTES
from runtime.errors import ExportError


def write_token_embeds(checkpoint: DecoderCheckpoint, path: Path, advance: Callable[[int], None]) -> None:
    """Writes the table block by block; ExportError for a value that f16 cannot hold, OutputError for a full disk."""
    with DataFile(path) as file:
        for block in checkpoint.embed_blocks(BLOCK_BYTES):
            with np.errstate(over="ignore"):
                half = block.astype("<f2")
            if not np.isfinite(half).all():
                largest = float(np.abs(block).max())
                raise ExportError(f"the token table has the value {largest:g}, above f16", hint="check the checkpoint")
            file.write(half)
            advance(block.size)
