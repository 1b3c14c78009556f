"""What is asked of the engine about each source, and when; what becomes of the answers."""

from __future__ import annotations

from runtime.captiond.captioning.album import HistoryEntry
from runtime.captiond.captioning.captioner import Captioner, CaptionerStats

__all__ = ["Captioner", "CaptionerStats", "HistoryEntry"]
