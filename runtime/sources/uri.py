"""URIs of sources: which scheme, what is behind it, and what of it may be shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from runtime.errors import SourceError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")
_CAMERA = re.compile(r"/dev/video\d+")


@dataclass(frozen=True, slots=True)
class SourceUri:
    """``scheme`` in lower case ("file" for a bare path), ``text`` as given, ``name`` without credentials."""

    scheme: str
    text: str
    name: str

    @property
    def path(self) -> str:
        """The path of a "file" URI, percent-decoded; a bare path as it is."""
        if not _SCHEME.match(self.text):
            return self.text
        parts = urlsplit(self.text)
        if parts.netloc not in ("", "localhost"):
            raise SourceError(
                f"{self.name}: a file URI names a path, not the host {parts.netloc!r}", hint="three slashes: file:///…"
            )
        return unquote(parts.path)

    def parameters(self) -> dict[str, str]:
        """The query as names and values. Raises SourceError for a name that comes twice."""
        pairs = parse_qsl(urlsplit(self.text).query, keep_blank_values=True)
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise SourceError(f"{self.name}: {name} is given twice")
        return dict(pairs)


def parse_uri(given: str | os.PathLike[str]) -> SourceUri:
    """Split a URI or a path. ``/dev/video0`` is ``v4l2:///dev/video0``. Raises SourceError for an empty one."""
    text = os.fspath(given)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise SourceError(f"{text!r} names no source", hint="a picture, a video, a directory, a quoted glob or a URI")
    match = _SCHEME.match(text)
    if match:
        return SourceUri(match.group(1).lower(), text, without_credentials(text))
    if _CAMERA.fullmatch(text):
        return SourceUri("v4l2", f"v4l2://{text}", text)
    return SourceUri("file", text, text)


def without_credentials(uri: str) -> str:
    """Replace user and password of a URI, for logs, messages and frames."""
    return _USERINFO.sub("***@", uri, count=1)
