"""Whatever a model, a camera or a broker says stays text: it becomes no element, runs nothing and turns nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.chromium import Browser
from tests.browser.stand_in import StandIn, engine_state, source_state

RUN = "alert(1)"
PAYLOADS = [
    f"<script>{RUN}</script>", f"</script><script>{RUN}</script>", f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>", f"<svg><script>{RUN}</script></svg>", f"<body onload={RUN}>",
    f"<iframe src=javascript:{RUN}>", f"<iframe srcdoc='<script>{RUN}</script>'>", f"<object data=javascript:{RUN}>",
    f"<embed src=javascript:{RUN}>", f"<a href=javascript:{RUN}>click</a>", f"<math><a xlink:href=javascript:{RUN}>x",
    f"<input autofocus onfocus={RUN}>", f"<select autofocus onfocus={RUN}>", f"<textarea autofocus onfocus={RUN}>",
    f"<video><source onerror={RUN}>", f"<audio src=x onerror={RUN}>", f"<details open ontoggle={RUN}>",
    f"<marquee onstart={RUN}>", f"<style>@import 'javascript:{RUN}'</style>", "<style>*{display:none}</style>",
    "<link rel=stylesheet href=//example.net/x.css>", "<base href=//example.net/>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>", f"<form action=javascript:{RUN}><button>go</button>",
    f'"><img src=x onerror={RUN}>', f"'><img src=x onerror={RUN}>", f"`><img src=x onerror={RUN}>",
    f'" onmouseover="{RUN}', f"' autofocus onfocus='{RUN}", f"javascript:{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    f"{{{{constructor.constructor('{RUN}')()}}}}", f"${{{RUN}}}", f"#{{{RUN}}}", f"<%= {RUN} %>",
    f"<!--><script>{RUN}</script>-->", f"--><script>{RUN}</script>", f"<![CDATA[<script>{RUN}</script>]]>",
    f"<template><script>{RUN}</script></template>", f"</template><img src=x onerror={RUN}>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>", f"<xss id=x tabindex=1 onfocus={RUN}></xss>",
    f"<ScRiPt>{RUN}</sCrIpT>", f"<<script>{RUN}//<</script>", f"<img/src=x/onerror={RUN}>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;", f"&#60;img src=x onerror={RUN}&#62;",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"<dialog open onclose={RUN}>", f"<button popovertarget=x>x</button><div popover id=x onbeforetoggle={RUN}>",
    "[x](javascript:alert(1)) **bold** <b>bold</b>",
]  # fmt: skip
# What every element of the page is, with attributes; texts may not change it.
SKELETON = """
  const names = [...document.querySelectorAll("*")].map((e) => e.localName);
  const attributes = [...document.querySelectorAll("*")].flatMap((e) => e.getAttributeNames());
  const handlers = attributes.filter((n) => n.startsWith("on"));
  return [[...new Set(names)].sort().join(" "), handlers, document.scripts.length, document.baseURI];
"""


@pytest.fixture
def many() -> Iterator[StandIn]:
    """A camera for each payload: named by it, asked it, saying it and failing with it."""
    server = StandIn([])
    for payload in PAYLOADS:
        prompt = {"id": payload, "text": payload, "kind": "text", "every_s": 0.0}
        source = source_state(
            f"{payload} camera", status="no_signal", cause=payload, message=payload, uri=payload,
            prompts=[prompt, prompt], rules=[{"name": payload, "active": True}],
        )  # fmt: skip
        server.state["sources"].append(source)
        server.history[source["name"]] = []
        server.finished(server.started(source["name"], prompt=prompt), payload, model=payload)
    yield server
    server.close()


def test_payloads_are_shown_verbatim_and_make_no_element(browser: Browser, many: StandIn) -> None:
    browser.open(many.address)
    count = "return document.querySelectorAll('.history li').length"
    browser.wait(lambda: browser.js(count) == len(PAYLOADS), "all captions")
    browser.wait(
        lambda: browser.js("return [...document.querySelectorAll('.caption')].every((n) => n.textContent)"), "shown"
    )

    def texts(selector: str) -> list[str]:
        found = browser.js("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", selector)
        return [str(text) for text in found]

    for place in (".caption", ".history .text", ".question", ".uri", ".chip bdi"):
        assert texts(place) == PAYLOADS, place
    assert texts(".card h2") == [f"{payload} camera" for payload in PAYLOADS]
    assert texts(".veil .detail") == [f"{payload} ({payload})" for payload in PAYLOADS]
    assert browser.js(
        "return [...document.querySelectorAll('.caption, bdi, .text')].every((n) => n.children.length === 0)"
    )
    words, handlers, scripts, base = browser.js(SKELETON)
    foreign = "iframe object embed style base audio video source marquee math details xss"
    assert set(words.split()) & set(foreign.split()) == set()
    assert (handlers, scripts, base) == ([], 2, many.address)
    assert browser.clean()


def test_payloads_in_notices_errors_and_the_engine_stay_text(browser: Browser, server: StandIn) -> None:
    server.state["model"] = PAYLOADS[0]
    server.state["version"] = PAYLOADS[2]
    server.state["board"] = {PAYLOADS[3]: PAYLOADS[2], "gpu_percent": 12}
    server.state["engine"] = engine_state("degraded", PAYLOADS[2], PAYLOADS[3])
    browser.open(server.address)
    server.wait_listeners()
    assert browser.text("#model") == PAYLOADS[0]
    for payload in PAYLOADS[:10]:
        failed = {"caption": 1, "source": "yard", "prompt_id": payload, "error": payload, "message": payload}
        notice: dict[str, Any] = {"type": "notice", "level": "info", "about": payload, "message": payload}
        server.publish({"type": "caption_failed", **failed}, notice)
        browser.wait_text(".trouble", f"{payload}: {payload}")
        browser.wait_text(".toast:last-child p", f"{payload}: {payload}")
    begun = server.started("yard")
    server.publish(begun, server.finished(begun, "{}", fields={PAYLOADS[2]: PAYLOADS[2], "deep": {"a": [PAYLOADS[3]]}}))
    browser.wait_text(".fields dd", PAYLOADS[2])
    browser.find(".history .row").click()
    browser.wait_text("#viewer .viewer-text", "{}")
    assert browser.js("return document.querySelectorAll('.toast').length") <= 4
    assert browser.js(SKELETON)[1:3] == [[], 2]
    assert browser.clean()


def test_escapes_become_signs_and_nothing_turns_the_line(browser: Browser, server: StandIn) -> None:
    browser.open(server.address)
    server.wait_listeners()
    server.caption("yard", "\x1b[31mred\x07\x9b2J\x00 \u202egnp.exe \u2066x\u2069 line\nbreak")
    browser.wait_text(".caption", "red")
    assert browser.text(".caption") == "\u241b[31mred\u2407\ufffd2J\u2400 gnp.exe x line\nbreak"
    # A caption that runs from right to left leaves what stands around it as it is.
    server.caption("yard", "\u05e9\u05dc\u05d5\u05dd 123")
    browser.wait_text(".caption", "\u05e9\u05dc\u05d5\u05dd")
    style = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.direction, s.unicodeBidi]"
    assert browser.js(style, ".caption") == ["rtl", "isolate"]
    assert browser.js(style, ".facts")[0] == "ltr"


def test_long_words_wrap_and_long_captions_stay_in_their_place(browser: Browser, server: StandIn) -> None:
    browser.open(server.address, 320, 640)
    server.wait_listeners()
    before = browser.find(".caption-box").size
    zalgo = "Z" + "\u0301" * 400
    for text in ("w" * 3000, zalgo, "🎥" * 500, "line\n" * 500, "x " * 30000):
        server.caption("yard", text)
        browser.wait_text(".caption", text[:20])
        assert browser.find(".caption-box").size == before
        assert browser.js("return document.documentElement.scrollWidth") <= 320
    assert len(browser.text(".caption")) == 20000  # of 60,000
    assert browser.clean()
