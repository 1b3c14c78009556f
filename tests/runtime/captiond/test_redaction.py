"""No secret gets into the log, whatever way a message carries it."""

from __future__ import annotations

import io
import logging

import pytest

from runtime.captiond.redaction import Redactor

SECRET = "p@ss/wörd 1"
PLAIN = "hunter2hunter2"
KEY = "vlm-Zm9vYmFyYmF6cXV4cXV1eA_-12"

# What is logged, what must not be seen, what must still be seen.
CASES = [
    ("rtsp://admin:hunter2hunter2@10.0.0.5:554/live", PLAIN, "10.0.0.5:554/live"),
    ("rtsps://admin:hunter2hunter2@[fe80::1]:322/live", PLAIN, "[fe80::1]:322/live"),
    ("http://hunter2hunter2@cam.lan/x", PLAIN, "cam.lan/x"),
    ("mqtts://u:a/hunter2hunter2@broker", PLAIN, "broker"),
    ("http://u:a@hunter2hunter2@cam/x", PLAIN, "cam/x"),
    ("open RTSP://Admin:hunter2hunter2@CAM failed", PLAIN, "failed"),
    ("two: rtsp://a:hunter2hunter2@one/ and rtsp://b:hunter2hunter2@two/", PLAIN, "two/"),
    ("Authorization: Bearer hunter2hunter2", PLAIN, "Authorization"),
    ("authorization=bearer   hunter2hunter2==", PLAIN, "authorization"),
    ("Authorization: Basic aHVudGVyMmh1bnRlcjI=", "aHVudGVyMmh1bnRlcjI=", "Authorization"),
    ('Authorization: Digest username="a", response="hunter2hunter2"', PLAIN, "Authorization"),
    (f"the key {KEY} is wrong", KEY, "is wrong"),
    ("sk-hunter2hunter2hunter2 was sent", PLAIN, "was sent"),
    ("password=hunter2hunter2&x=1", PLAIN, "x=1"),
    ("password: hunter2hunter2, host: a", PLAIN, "host: a"),
    ('{"password": "hunter2hunter2", "host": "a"}', PLAIN, '"host": "a"'),
    ('{"password": "two words hunter2hunter2", "host": "a"}', PLAIN, '"host": "a"'),
    ("api_key=hunter2hunter2", PLAIN, "api_key"),
    ("API-KEY: hunter2hunter2", PLAIN, "API-KEY"),
    ("rtspsrc user-id=admin user-pw=hunter2hunter2 latency=200", PLAIN, "latency=200"),
    ("Cookie: vlm=hunter2hunter2; other=1", PLAIN, "Cookie"),
    ("Set-Cookie: __Host-vlm=hunter2hunter2; Path=/", PLAIN, "Set-Cookie"),
    (f"camera said {SECRET}", SECRET, "camera said"),
    ("camera said p%40ss%2Fw%C3%B6rd%201", "p%40ss%2Fw%C3%B6rd%201", "camera said"),
    ("camera said p%40ss%2Fw%C3%B6rd+1", "p%40ss%2Fw%C3%B6rd+1", "camera said"),
    (f"location=rtsp://cam/{SECRET}/1", SECRET, "location=rtsp://cam/"),
]


def logged(message: str, *args: object, error: BaseException | None = None) -> str:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    redactor = Redactor()
    redactor.add(SECRET)
    handler.addFilter(redactor)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(message, *args, exc_info=error)
    return out.getvalue()


@pytest.mark.parametrize(("text", "secret", "rest"), CASES, ids=range(len(CASES)))
def test_a_secret_is_cut_out_of_a_message_and_the_rest_stays(text: str, secret: str, rest: str) -> None:
    for shown in (logged(text), logged("%s", text)):
        assert secret not in shown
        assert rest in shown
        assert "***" in shown


def test_a_secret_is_cut_out_of_an_exception_and_its_causes() -> None:
    try:
        try:
            raise OSError(f"rtsp://a:{PLAIN}@cam")
        except OSError as cause:
            raise ValueError(f"said {SECRET}") from cause
    except ValueError as error:
        shown = logged("failed", error=error)
    assert "ValueError" in shown
    assert PLAIN not in shown
    assert SECRET not in shown


def test_a_record_whose_arguments_do_not_fit_is_no_reason_to_fail() -> None:
    assert PLAIN not in logged("%d %d", f"password={PLAIN}")


@pytest.mark.parametrize(
    "text",
    [
        "source door: live at 30 fps, http://localhost:8090/",
        "caption: a man with a basic hat @ the door",
        "mail someone@example.org about the token bucket",
        "engine restarted: killed by signal 9",
    ],
)
def test_a_message_without_secrets_stays_as_it_is(text: str) -> None:
    assert logged(text) == text + "\n"


def test_what_is_too_short_to_be_a_secret_cuts_no_holes() -> None:
    redactor = Redactor()
    for word in (None, "", "a", "abc"):
        redactor.add(word)
    assert redactor.text("a cab abc") == "a cab abc"
