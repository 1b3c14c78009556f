"""Authorization values are those of the RFCs' own examples, and of a second implementation."""

from __future__ import annotations

import hashlib
import re
from urllib.request import AbstractDigestAuthHandler, HTTPPasswordMgr, Request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.capture import authorization as module
from runtime.captiond.capture.authorization import authorization

# RFC 7616, 3.9.1
_NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
_OPAQUE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
_RFC = (
    f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={{}}, nonce="{_NONCE}", opaque="{_OPAQUE}"'
)


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_examples_of_rfc_7616(monkeypatch: pytest.MonkeyPatch, algorithm: str, response: str) -> None:
    own = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: own)
    value = authorization([_RFC.format(algorithm)], "GET", "/dir/index.html", "Mufasa", "Circle of Life")
    assert value is not None
    assert f'response="{response}"' in value
    assert f'opaque="{_OPAQUE}"' in value
    assert value.startswith("Digest ")


def test_the_example_of_rfc_7617() -> None:
    value = authorization(['Basic realm="WallyWorld"'], "GET", "/", "Aladdin", "open sesame")
    assert value == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_digest_goes_before_basic() -> None:
    value = authorization(['Basic realm="a"', 'Digest realm="a", nonce="b"'], "DESCRIBE", "rtsp://c/", "me", "it")
    assert value is not None
    assert value.startswith("Digest ")


@given(user=st.text("ab:", max_size=8), password=st.text('aB1 :"', max_size=8), realm=st.text("ab c", max_size=8))
def test_an_old_challenge_is_answered_as_urllib_answers_it(user: str, password: str, realm: str) -> None:
    class Known(HTTPPasswordMgr):
        def find_user_password(self, realm: str, authuri: str) -> tuple[str, str]:  # type: ignore[override]
            return user, password

    handler = AbstractDigestAuthHandler(Known())
    request = Request("http://camera/stream?a=1")
    theirs = handler.get_authorization(request, {"realm": realm, "nonce": "n0nce"})
    ours = authorization([f'Digest realm="{realm}", nonce="n0nce"'], "GET", "/stream?a=1", user, password)
    assert theirs is not None
    assert ours is not None
    found = [re.search(r'response="(\w+)"', text) for text in (theirs, ours)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Digest",
        "Bearer x",
        'Digest realm="a"',
        'Digest nonce="a", algorithm=MD5-sess',
        'Digest nonce="a", qop="auth-int"',
    ],
)
def test_what_cannot_be_met_is_not_answered(challenge: str) -> None:
    assert authorization([challenge], "GET", "/", "me", "it") is None


def test_quotes_in_a_name_cannot_end_it() -> None:
    value = authorization(['Digest realm="r\\"s", nonce="n"'], "GET", "/", 'm"e', "it")
    assert value is not None
    assert 'username="m\\"e"' in value
    assert 'realm="r\\"s"' in value
    secret = hashlib.md5(b'm"e:r"s:it').hexdigest()
    asked = hashlib.md5(b"GET:/").hexdigest()
    assert f'response="{hashlib.md5(f"{secret}:n:{asked}".encode()).hexdigest()}"' in value
