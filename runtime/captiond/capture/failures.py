"""Why an attempt at a source came to nothing: one word for the supervisor, a sentence for people."""

from __future__ import annotations

from runtime.errors import SourceError


class CaptureFailed(SourceError):
    """``cause``: "refused", "401", "403", "404" or another HTTP status, "timeout", "closed" (the peer ended the
    stream), "missing" (file or device), "unsupported" (codec, content, scheme), "no_video", "too_large", "damaged",
    "memory", "redirect", "busy", "failed" (no more is known), "internal"."""

    def __init__(self, cause: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause
