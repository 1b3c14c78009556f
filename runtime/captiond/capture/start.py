"""What a capture child is told when it starts: plain values, made from a source's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runtime.captiond.config.settings import SourceSettings

CAPTURE = "runtime.captiond.capture.child"
PICTURES = "runtime.captiond.pictures.child"
GST_CHILD = Path(__file__).with_name("gst_child.py")
GST_PYTHON = "/usr/bin/python3"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NETWORK = ("rtsp", "rtsps", "http", "https")
_CAMERA = re.compile(r"/dev/video\d+")
_PASSED = (
    "transport",
    "latency_ms",
    "fps",
    "width",
    "height",
    "max_side_px",
    "max_pixels",
    "memory_mib",
    "open_timeout_s",
    "loop",
    "every_frame",
)


def scheme_of(uri: str) -> str:
    """The scheme in lower case; "file" for a path, "v4l2" for /dev/video0, "gst" for a pipeline."""
    if uri.startswith("gst:"):
        return "gst"
    match = _SCHEME.match(uri)
    if match:
        return match.group(1).lower()
    return "v4l2" if _CAMERA.fullmatch(uri) else "file"


def slot_bytes(source: SourceSettings) -> int:
    """How large a slot of the source's ring has to be: for the largest frame that its child delivers."""
    return 3 * min(source.max_side_px**2, source.max_pixels)


def arguments_of(
    source: SourceSettings, password: str | None, first_seq: int, pipeline: Mapping[str, object] | None
) -> dict[str, object]:
    """Everything that a child needs to know. ``pipeline``: of `pipelines`, for the GStreamer child.

    Credentials stand apart from the URI; those of the settings go before those of the URI.
    """
    uri, user, secret = without_userinfo(source.uri)
    passed: dict[str, object] = {name: getattr(source, name) for name in _PASSED}
    return {
        "uri": uri,
        "scheme": scheme_of(source.uri),
        "user": source.user if source.user is not None else user,
        "password": password if password is not None else secret,
        "first_seq": first_seq,
        "pipeline": pipeline,
        **passed,
    }


def without_userinfo(uri: str) -> tuple[str, str | None, str | None]:
    """A network URI without its user and password, and these; other URIs as they are."""
    if scheme_of(uri) not in _NETWORK:
        return uri, None, None
    parts = urlsplit(uri)
    userinfo, _, place = parts.netloc.rpartition("@")
    user, found, password = userinfo.partition(":")
    return (
        parts._replace(netloc=place).geturl(),
        unquote(user) if userinfo else None,
        unquote(password) if found else None,
    )
