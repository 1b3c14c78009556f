"""The page shows what the daemon says, as it says it: captions with their frames, states in their own place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.browser.chromium import Browser
from tests.browser.stand_in import PROMPT, StandIn, engine_state, source_state

SENTENCE = ["a", "large", "red", "star", "stands", "on", "the", "left", "of", "two", "small", "blue", "circles"]
# What moves though nobody has touched it. The cursor that walks before the text is no element, so it has no node.
SHIFT = """
  window.moved = [];
  const seen = (entry) => entry.sources.filter((s) => s.node).map((s) => s.node.className || s.node.nodeName);
  const watch = new PerformanceObserver((list) => window.moved.push(...list.getEntries().flatMap(seen)));
  watch.observe({ type: "layout-shift" });
"""


@pytest.fixture
def page(browser: Browser, server: StandIn) -> Iterator[Browser]:
    browser.open(server.address)
    server.wait_listeners()
    yield browser


def source_event(status: str, cause: str = "", message: str = "", retry: float | None = None) -> dict[str, object]:
    return {
        "type": "source", "source": "yard", "status": status, "cause": cause, "message": message, "attempt": 3,
        "retry_in_s": retry,
    }  # fmt: skip


def test_a_caption_is_written_token_by_token_beside_the_frame_it_is_about(page: Browser, server: StandIn) -> None:
    begun = server.started("yard", seq=100)
    server.publish(begun)
    for index, word in enumerate(SENTENCE):
        server.publish(server.delta(begun, f"{word} ", index))
        page.wait(lambda i=index: page.text(".caption") == " ".join(SENTENCE[: i + 1]) + " ", f"word {index}")
        assert page.js("return document.querySelector('.pair').dataset.writing") == "true"
    picture = f"/api/sources/yard/history/{begun['caption']}.jpg?t={begun['frame']['t_capture_ns']}"
    assert page.find(".thumb-box img").get_attribute("src").endswith(picture)
    server.publish(server.finished(begun, " ".join(SENTENCE)))
    page.wait(lambda: page.js("return document.querySelector('.pair').dataset.writing") == "false", "the end")
    page.wait_text(".facts", "Frame 100 · ")
    page.wait_text(".facts", " ago · first word after 84 ms · ")
    assert page.clean()


def test_nothing_moves_while_a_caption_is_written(page: Browser, server: StandIn) -> None:
    server.caption("yard", "a first one")
    page.wait_text(".caption", "a first one")
    page.wait_text(".history .text", "a first one")
    page.js(SHIFT)
    begun = server.started("yard")
    words = SENTENCE * 12
    for index in range(0, len(words), 6):
        server.publish(*([begun] if index == 0 else []))
        server.publish(*(server.delta(begun, f"{words[i]} ", i) for i in range(index, index + 6)))
        page.wait(lambda i=index: len(page.text(".caption").split()) == i + 6, f"word {index}")
    assert page.js("return window.moved") == []
    # The end of the text is in sight.
    rest = "const b = document.querySelector('.caption-box'); return b.scrollHeight - b.scrollTop - b.clientHeight"
    page.wait(lambda: page.js(rest) < 2, "the text scrolled to its end")


def test_the_large_picture_is_live_or_the_captioned_frame(page: Browser, server: StandIn) -> None:
    server.caption("yard", "a star")
    page.wait_text(".caption", "a star")
    page.wait(lambda: page.js("return document.querySelector('.frame').naturalWidth") == 256, "a live picture")
    page.wait_text(".stamp", "frame ")
    first = page.js("return document.querySelector('.frame').src")
    page.wait(lambda: page.js("return document.querySelector('.frame').src") != first, "another live picture")
    page.find(".view .captioned").click()
    about = page.find(".frame-box .about")
    assert about.is_displayed() and "/history/1.jpg" in about.get_attribute("src")
    assert not page.find(".thumb-box").is_displayed()
    page.wait_text(".stamp", "Frame 1 · captioned")
    # Nobody looks at live pictures: none are fetched.
    page.wait(lambda: page.js("return document.querySelector('.view .captioned').ariaPressed") == "true", "pressed")
    time.sleep(0.3)
    before = len([r for r in server.requests if "picture.jpg" in r])
    time.sleep(0.5)
    assert len([r for r in server.requests if "picture.jpg" in r]) == before
    page.find(".view .live").click()
    page.wait(lambda: len([r for r in server.requests if "picture.jpg" in r]) > before, "live pictures again")
    assert page.clean()


def test_fast_captions_stay_long_enough_to_be_read_and_all_are_in_the_history(page: Browser, server: StandIn) -> None:
    page.js("""
      window.seen = [];
      new MutationObserver(() => {
        const text = document.querySelector(".caption").textContent.trim();
        if (window.seen.at(-1)?.[0] !== text) window.seen.push([text, performance.now()]);
      }).observe(document.querySelector(".caption"), { childList: true, characterData: true, subtree: true });
    """)
    for number in range(20):
        server.caption("yard", f"caption{number}")
        time.sleep(0.05)
    page.wait_text(".caption", "caption19")
    times = [at for _, at in page.js("return window.seen")]
    assert len(times) < 20 and all(late - early > 350 for early, late in pairwise(times))
    page.wait(lambda: page.js("return document.querySelectorAll('.history li').length") == 20, "20 rows")


def test_the_state_of_a_source_never_stands_where_captions_stand(page: Browser, server: StandIn) -> None:
    server.caption("yard", "a star")
    page.wait_text(".caption", "a star")
    server.state["sources"][0].update(status="no_signal")
    server.publish(source_event("no_signal", "refused", "camera 10.0.0.7:554 refuses", 12.0))
    page.wait_text(".status", "No signal")
    veil = page.find(".veil")
    assert veil.is_displayed() and "No signal" in veil.text and "camera 10.0.0.7:554 refuses (refused)" in veil.text
    page.wait_text(".next", "Next attempt in 1")
    assert page.text(".caption") == "a star"
    page.wait_text(".facts", "Last caption · ")
    assert page.js("return document.querySelector('.frame').hasAttribute('src')") is False  # no old frame stays
    server.publish({"type": "caption_failed", "caption": 9, "source": "yard", "prompt_id": "describe",
                    "error": "EngineError", "message": "the engine died"})  # fmt: skip
    page.wait_text(".trouble", "The last caption failed. EngineError: the engine died")
    assert page.text(".caption") == "a star"
    for status, words in (("connecting", "Connecting to the camera"), ("ended", "The video has ended")):
        server.state["sources"][0].update(status=status)
        server.publish(source_event(status))
        page.wait_text(".veil .headline", words)
    server.state["sources"][0].update(status="live")
    server.publish(source_event("live"))
    page.wait(lambda: not page.find(".veil").is_displayed(), "the picture")
    page.wait(lambda: page.js("return document.querySelector('.frame').naturalWidth") == 256, "a live picture")
    assert page.text(".history ol").count("a star") == 1


def test_rules_engine_and_notices_are_told(page: Browser, server: StandIn) -> None:
    begun = server.started("yard")
    for active in (True, False):
        server.publish({"type": "rule", "source": "yard", "rule": "smoke", "active": active, "value": active,
                        "caption": 1, "frame": begun["frame"]})  # fmt: skip
        page.wait_text(".chip", "active" if active else "quiet")
        page.wait(lambda a=active: page.driver.title == ("(1) captiond" if a else "captiond"), "the title")
    server.state["engine"] = engine_state("degraded", "five deaths in a minute", "signal 11")
    server.publish(server.state["engine"])
    page.wait_text("#engine-banner", "The engine keeps failing; captions wait. five deaths in a minute (signal 11)")
    server.state["engine"] = engine_state()
    server.publish(server.state["engine"])
    page.wait(lambda: not page.find("#engine-banner").is_displayed(), "no banner")
    server.publish({"type": "notice", "level": "error", "about": "mqtt", "message": "broker.local does not answer"})
    page.wait_text(".toast p", "mqtt: broker.local does not answer")
    page.find(".toast button").click()
    page.wait(lambda: page.js("return document.querySelectorAll('.toast').length") == 0, "the notice gone")


def test_a_page_that_comes_in_the_middle_of_a_caption_gets_each_token_once(browser: Browser, server: StandIn) -> None:
    begun = server.started("yard")
    server.state["sources"][0]["live"] = {
        "caption": begun["caption"], "text": "one two ", "index": 1, "frame": begun["frame"], "prompt_id": "describe",
        "prompt": PROMPT["text"],
    }  # fmt: skip
    browser.open(server.address)
    server.wait_listeners()
    server.publish(server.delta(begun, "two ", 1), server.delta(begun, "three ", 2))
    browser.wait_text(".caption", "three")
    assert browser.text(".caption") == "one two three "


def test_the_page_comes_back_after_the_daemon_has_been_restarted(page: Browser, server: StandIn) -> None:
    server.caption("yard", "before")
    page.wait_text(".history .text", "before")
    server.close()
    page.wait_text("#link", "No connection")
    assert page.find("#link-banner").is_displayed()
    page.wait_text(".facts", "Last caption")
    again = StandIn([source_state("yard")], port=server.port)
    try:
        again.caption("yard", "meanwhile")  # its number is that of the caption before the restart
        page.wait_text("#link", "Connected")
        assert not page.find("#link-banner").is_displayed()
        again.wait_listeners()
        again.caption("yard", "after")
        page.wait_text(".caption", "after")
        rows = "return [...document.querySelectorAll('.history .text')].map((n) => n.textContent.trim()).join(' ')"
        page.wait(lambda: page.js(rows) == "after meanwhile before", "the history of both")
    finally:
        again.close()
    page.wait_text("#link", "No connection")
    third = StandIn([source_state("yard")], port=server.port)
    try:
        page.find("#retry").click()
        page.wait_text("#link", "Connected")
    finally:
        third.close()


def test_a_state_that_events_have_overtaken_changes_nothing(page: Browser, server: StandIn) -> None:
    first = server.started("yard")
    server.publish(first, server.delta(first, "first ", 0))
    page.wait_text(".caption", "first ")
    stale = {key: first[key] for key in ("caption", "frame", "prompt_id", "prompt")} | {"text": "first ", "index": 0}
    server.publish(server.finished(first, "first one"))
    second = server.started("yard")
    server.publish(second, server.delta(second, "second ", 0))
    page.wait_text(".caption", "second ")
    for live in (stale, None):
        server.state["sources"][0].update(live=live, caption=None)
        asked = server.requests.count("GET /api/state")
        page.find(".pause").click()  # asks for the state
        page.wait(lambda n=asked: server.requests.count("GET /api/state") > n, "a state")
    server.publish(server.delta(second, "caption ", 1))
    page.wait_text(".caption", "second caption ")
    server.publish({"type": "missed", "count": 3})
    page.wait_text(".history .text", "first one")
    server.publish(server.finished(second, "second caption here"))
    page.wait_text(".caption", "second caption here")
    page.wait_text(".facts", "tokens/s")
