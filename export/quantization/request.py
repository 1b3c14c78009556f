"""What a quantisation is asked for, and what became of it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.errors import UsageError

Method = Literal["awq", "rtn"]
HeadBits = Literal["auto", "4", "8", "16"]
Format = Literal["awq", "compressed-tensors"]
SEED = 20_260_101  # decides which items of a calibration set larger than --samples are taken
MAX_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What the command line asks for.

    ``samples`` prompts are calibrated on, each cut to ``max_seq_len`` positions, all together to ``tokens``. ``method``
    "rtn" rounds to nearest without a search. ``clip``: whether AWQ also searches for clipped ranges.
    """

    checkpoint: Path
    out: Path
    calibration: Path | None = None
    method: Method = "awq"
    group_size: int = 128
    format: Format = "awq"
    head_bits: HeadBits = "auto"
    samples: int = 32
    max_seq_len: int = 2048
    tokens: int = 16_384
    clip: bool = False
    device: str = "cpu"
    dry_run: bool = False
    force: bool = False

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other, before anything is read."""
        if self.calibration is None and self.method == "awq":
            raise UsageError(
                "--method awq searches on calibration prompts, and there are none",
                hint="add --calibration <folder of images, .txt or .jsonl>, or --method rtn --head-bits 4",
            )
        if self.calibration is None and self.head_bits == "auto":
            raise UsageError(
                "--head-bits auto measures on calibration prompts, and there are none",
                hint="add --calibration <folder of images, .txt or .jsonl>, or choose --head-bits 4, 8 or 16",
            )
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise UsageError(f"--samples is {self.samples}, expected 1 to {MAX_SAMPLES}")
        if self.checkpoint.absolute() == self.out.absolute():
            raise UsageError(f"--out is the checkpoint itself, {self.out}", hint="name a new folder")


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """Where the quantised checkpoint lies and its ``quantization.json`` (None after --dry-run)."""

    out: Path
    record: dict[str, Any] | None
    plan: dict[str, Any]
