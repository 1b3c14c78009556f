"""The Authorization header of RTSP and HTTP: Digest (RFC 7616, and 2069 without qop) before Basic (RFC 7617)."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence

_PARAMETER = re.compile(r'([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_ALGORITHMS = {"MD5": "md5", "SHA-256": "sha256"}
_ESCAPE = re.compile(r"\\(.)")


def authorization(challenges: Sequence[str], method: str, target: str, user: str, password: str) -> str | None:
    """The header's value for the best challenge that can be met, or None. ``challenges``: WWW-Authenticate values.

    Of Digest the algorithms MD5 and SHA-256 are known, with qop ``auth`` or none.
    """
    digests = [found for text in challenges if (found := _digest(text, method, target, user, password)) is not None]
    if digests:
        return digests[0]
    if any(text.strip().lower().startswith("basic") for text in challenges):
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    return None


def _digest(challenge: str, method: str, target: str, user: str, password: str) -> str | None:
    scheme, _, rest = challenge.strip().partition(" ")
    if scheme.lower() != "digest":
        return None
    given = {name.lower(): _ESCAPE.sub(r"\1", quoted) or bare for name, quoted, bare in _PARAMETER.findall(rest)}
    algorithm = given.get("algorithm", "MD5").upper()
    offered = [word.strip().lower() for word in given["qop"].split(",")] if given.get("qop") else []
    if algorithm not in _ALGORITHMS or "nonce" not in given or (offered and "auth" not in offered):
        return None

    def hashed(*parts: str) -> str:
        return hashlib.new(_ALGORITHMS[algorithm], ":".join(parts).encode()).hexdigest()

    realm, nonce = given.get("realm", ""), given["nonce"]
    secret, request = hashed(user, realm, password), hashed(method, target)
    fields = {"username": user, "realm": realm, "nonce": nonce, "uri": target}
    extra = [f"algorithm={algorithm}"] if "algorithm" in given else []
    if offered:
        own = secrets.token_hex(8)
        fields["cnonce"] = own
        extra += ["nc=00000001", "qop=auth"]
        fields["response"] = hashed(secret, nonce, "00000001", own, "auth", request)
    else:
        fields["response"] = hashed(secret, nonce, request)
    if "opaque" in given:
        fields["opaque"] = given["opaque"]
    return "Digest " + ", ".join([f"{name}={_quoted(value)}" for name, value in fields.items()] + extra)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
