"""The structures of csrc/state.cuh for the host, as numpy dtypes."""

from __future__ import annotations

import numpy as np

MAX_STEP_TOKENS = 8

STATUS_BAD_TOKEN = 1
STATUS_BAD_LOGITS = 2
STATUS_FULL = 4
STATUS_BAD_IMAGE_ROW = 8

DECODE_STATE = np.dtype(
    [
        ("pos", "<i4"),
        ("slot", "<i4"),
        ("step", "<i4"),
        ("status", "<i4"),
        ("reserved", "<i4", (4,)),
        ("token", "<i4", (MAX_STEP_TOKENS,)),
    ]
)
SAMPLE_PARAMS = np.dtype(
    [
        ("top_p", "<f8"),
        ("min_p", "<f8"),
        ("seed", "<u8"),
        ("temperature", "<f4"),
        ("repetition_penalty", "<f4"),
        ("top_k", "<i4"),
        ("reserved", "<i4"),
    ]
)
RING_ENTRY = np.dtype([("token", "<i4"), ("logprob", "<f4"), ("sequence", "<i4"), ("status", "<i4")])
HEAD_PARTIAL = np.dtype([("max", "<f4"), ("index", "<i4"), ("sum", "<f4"), ("reserved", "<i4")])
