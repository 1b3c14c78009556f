"""Run by itself: loads a checkpoint and prints what that took, in bytes. ``python loading_memory.py DIRECTORY``"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from models.checkpoint import load_checkpoint


def status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def main(warm: str, directory: str) -> None:
    """Load ``warm`` first, so that what Python and torch take for themselves is there already."""
    load_checkpoint(warm)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    model, _ = load_checkpoint(directory, dtype=None)
    peak = status("VmHWM") - before
    tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    sys.stdout.write(json.dumps({"peak": peak, "weights": sum(tensors.values())}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
