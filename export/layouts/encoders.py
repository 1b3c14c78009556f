"""VILA's ``image_encoder`` and ``video_encoder``: the texts that are embedded around each picture. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.layouts.reading import COPY
from runtime.errors import ExportError


def encoder_texts(where: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """``start_tokens`` and ``end_tokens`` of the image encoder.

    Raises ExportError for another encoder than the basic ones, and for a video encoder that writes frames otherwise
    than pictures: the runtime has one way.
    """
    texts = _texts(where, config, "image_encoder", "BasicImageEncoder")
    frames = _texts(where, config, "video_encoder", "BasicVideoEncoder")
    if frames != texts:
        raise ExportError(
            f"{where}: image_encoder writes {texts}, video_encoder {frames}", hint="give both the same tokens"
        )
    return texts


def _texts(where: Path, config: Mapping[str, Any], key: str, basic: str) -> tuple[str, str]:
    described = config.get(key)
    if isinstance(described, str):
        try:
            described = json.loads(described)
        except ValueError as problem:
            raise ExportError(f"{where}: {key} is not JSON: {problem}", hint=COPY) from problem
    described = described or {}
    known = isinstance(described, dict) and str(described.get("_target_", basic)).endswith(basic)
    if not isinstance(described, dict) or not known:
        raise ExportError(f"{where}: {key} is {described!r}", hint=f"set it to {basic} to export this checkpoint")
    start, end = described.get("start_tokens"), described.get("end_tokens", "\n")
    if not all(text is None or isinstance(text, str) for text in (start, end)):
        raise ExportError(f"{where}: {key} has start {start!r} and end {end!r}, expected texts", hint=COPY)
    return start or "", end or ""
