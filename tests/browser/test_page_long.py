"""The page stays open for days: what it keeps is bounded, and it asks nobody but its daemon."""

from __future__ import annotations

from tests.browser.chromium import Browser
from tests.browser.stand_in import StandIn

CAPTIONS = 20_000
BATCH = 2000
WARM = BATCH
MAX_GROWTH_BYTES = 150_000  # 8 bytes a caption: not one number of it is kept


def play(server: StandIn, browser: Browser, first: int, last: int) -> None:
    """Captions, as fast as the page takes them."""
    for begin in range(first, last, BATCH):
        events = []
        for number in range(begin, begin + BATCH):
            begun = server.started("yard")
            text = f"caption number {number}"
            events += [begun, server.delta(begun, "caption ", 0), server.finished(begun, text)]
        server.publish(*events)
        newest = f"caption number {begin + BATCH - 1}"
        browser.wait(lambda n=newest: browser.text(".history .text") == n, newest)


def test_memory_stays_flat_over_20000_captions(browser: Browser, server: StandIn) -> None:
    browser.open(server.address)
    server.wait_listeners()
    browser.cdp("Network.disable", {})  # the driver would log every event
    play(server, browser, 0, WARM)
    before, nodes = browser.heap_bytes(), browser.cdp("Memory.getDOMCounters", {})
    play(server, browser, WARM, CAPTIONS)
    after, counters = browser.heap_bytes(), browser.cdp("Memory.getDOMCounters", {})
    assert browser.js("return document.querySelectorAll('.history li').length") == 40
    assert after - before <= MAX_GROWTH_BYTES, f"{before} bytes became {after}"
    assert counters["nodes"] <= nodes["nodes"] + 400 and counters["jsEventListeners"] <= nodes["jsEventListeners"] + 100
    assert browser.witness()["addresses"] <= 2  # the live picture, and the one that follows it
    assert browser.clean()
    browser.cdp("Network.enable", {})


def test_no_request_leaves_the_origin(browser: Browser, server: StandIn) -> None:
    server.state["sources"][0]["uri"] = "https://example.net/camera"
    browser.open(server.address)
    server.wait_listeners()
    server.caption("yard", "see https://example.net/picture.png and <img src=https://example.net/x.png>")
    browser.wait_text(".history .text", "example.net")
    browser.find(".history .row").click()
    browser.wait_text(".viewer-text", "example.net")
    asked = browser.addresses()
    assert any("/page/app.js" in address for address in asked)
    own = (server.address, f"blob:{server.address}", "data:")
    assert [address for address in asked if not address.startswith(own)] == []
    assert browser.clean()
