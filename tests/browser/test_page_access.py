"""The page can be used without a mouse, without seeing it, on a phone, in light and in dark."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import Browser
from tests.browser.stand_in import PROMPT, StandIn, engine_state, source_state

ROLES = {"button", "textbox", "combobox", "checkbox", "spinbutton", "image", "img", "dialog", "group", "list", "main"}
# The contrast of each visible text with what is behind it (WCAG 2.2, 1.4.3). Behind the words over a picture may be
# anything: white is the worst for light words.
CONTRAST = """
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const behind = (e) => {
    const layers = [];
    for (let n = e; n; n = n.parentElement) {
      layers.push(parse(getComputedStyle(n).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
      if (n.classList.contains("stage")) { layers.push([255, 255, 255, 1]); break; }
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const written = (own || e.matches("input, select, textarea")) && !e.closest("option, noscript, template");
    const apart = e.closest("[hidden], .visually-hidden, :disabled");
    if (!written || apart || !e.checkVisibility() || !e.clientHeight) continue;
    const style = getComputedStyle(e);
    const back = behind(e);
    const [a, b] = [light(over(parse(style.color), back)), light(back)].sort((x, y) => y - x);
    found.push([`${e.localName}.${e.className} ${e.textContent.slice(0, 30)}`, (a + 0.05) / (b + 0.05)]);
  }
  return found;
"""


@pytest.fixture
def busy() -> Iterator[StandIn]:
    """Cameras in every state, and an engine in trouble."""
    rules = [{"name": "smoke", "active": True}, {"name": "rain", "active": False}]
    server = StandIn(
        [
            source_state("yard", rules=rules, prompts=[dict(PROMPT), {**PROMPT, "id": "other"}]),
            source_state("door", status="no_signal", cause="refused", message="refuses", retry_in_s=9.0),
            source_state("gate", status="connecting"),
            source_state("lab", status="ended", paused=True),
        ]
    )
    server.state.update(engine=engine_state("restarting", "signal 9", "killed"), tokens_per_s=41.5, ttft_ms=70.0)
    server.state["board"] = {"gpu_percent": 71, "power_w": 9.25, "temperatures": {"gpu_c": 55.5}}
    for source in server.state["sources"]:
        server.finished(server.started(source["name"]), f"a star in the {source['name']}")
    yield server
    server.close()


def open_busy(browser: Browser, server: StandIn, **how: Any) -> None:
    browser.open(server.address, **how)
    server.wait_listeners()
    browser.wait(lambda: browser.js("return document.querySelectorAll('.history li').length") == 4, "history")
    server.publish(
        {"type": "notice", "level": "warning", "about": "mqtt", "message": "no broker"},
        {"type": "caption_failed", "caption": 99, "source": "yard", "prompt_id": "x", "error": "E", "message": "m"},
    )
    browser.wait_text(".trouble", "E: m")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_contrast(browser: Browser, busy: StandIn, dark: bool) -> None:
    open_busy(browser, busy, dark=dark)
    assert browser.js("return document.documentElement.dataset.theme") == ("dark" if dark else "light")
    seen = browser.js(CONTRAST)
    for key in ("e", "?", None):  # the dialogs too
        assert len(seen) > 30
        assert [found for found in seen if found[1] < 4.5] == []
        if key:
            browser.press(Keys.ESCAPE)
            browser.press(key)
            browser.wait(lambda: browser.js("return Boolean(document.querySelector('dialog[open]'))"), "a dialog")
            seen = browser.js(CONTRAST)
    browser.press(Keys.ESCAPE)
    assert browser.clean()


def test_the_theme_follows_the_system_until_one_is_chosen_and_is_remembered(browser: Browser, server: StandIn) -> None:
    theme = "return [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    browser.open(server.address)
    server.wait_listeners()
    light = browser.js(theme)
    browser.media({"prefers-color-scheme": "dark"})
    browser.wait(lambda: browser.js(theme)[0] == "dark" and browser.js(theme) != light, "dark")
    browser.press("t")
    browser.wait(lambda: browser.js(theme) == light, "light again")
    browser.driver.refresh()
    server.wait_listeners()
    assert browser.js(theme) == light


@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (768, 1024), (1440, 900), (2560, 1440)])
def test_the_page_fits_and_can_be_pressed(browser: Browser, busy: StandIn, width: int, height: int) -> None:
    open_busy(browser, busy, width=width, height=height, phone=width < 500)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    small = """
      return [...document.querySelectorAll("button")].filter((b) => b.checkVisibility())
        .map((b) => [b.textContent, b.getBoundingClientRect()])
        .filter(([, r]) => r.width < 24 || r.height < 24 || r.left < 0 || r.right > innerWidth + 1).map(([t]) => t);
    """
    assert browser.js(small) == []
    columns = len(set(browser.js("return [...document.querySelectorAll('.card')].map((c) => c.offsetLeft)")))
    assert columns == {320: 1, 390: 1, 768: 1, 1440: 3, 2560: 4}[width]
    browser.press("f")  # one camera fills the width
    browser.wait(
        lambda: browser.js("return document.querySelector('.card').offsetWidth") > 0.9 * (width - 64), "filled"
    )
    assert browser.js("return [...document.querySelectorAll('.card')].filter((c) => !c.hidden).length") == 1
    assert browser.js("return document.documentElement.scrollWidth") <= width
    browser.press("e")
    browser.wait(lambda: browser.js("return document.querySelector('#prompts').open"), "the dialog")
    assert browser.js("return document.querySelector('#prompts').scrollWidth") <= width
    browser.press(Keys.ESCAPE)


def test_everything_has_a_name_and_the_page_its_landmarks(browser: Browser, busy: StandIn) -> None:
    open_busy(browser, busy)
    nodes = []
    for key in (None, "e", "?"):
        browser.press(Keys.ESCAPE, *([key] if key else []))
        nodes += browser.cdp("Accessibility.getFullAXTree", {})["nodes"]
    browser.press(Keys.ESCAPE)
    seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    roles = {role for role, _ in seen}
    assert {"banner", "main", "contentinfo", "navigation", "article", "heading", "dialog", "log", "status"} <= roles
    nameless = [role for role, name in seen if role in ROLES - {"list"} and not name.strip()]
    assert nameless == []
    assert {("article", "yard"), ("article", "door")} <= set(seen)
    assert browser.js("return document.documentElement.lang") == "en"
    levels = browser.js("return [...document.querySelectorAll('main h2, main h3')].map((h) => h.localName)")
    assert levels == ["h2", "h3"] * 4


def test_a_screen_reader_hears_finished_captions_and_no_tokens(browser: Browser, server: StandIn) -> None:
    browser.open(server.address)
    server.wait_listeners()
    begun = server.started("yard")
    server.publish(begun, *(server.delta(begun, f"w{i} ", i) for i in range(20)))
    browser.wait_text(".caption", "w19")
    assert (
        browser.js("return Boolean(document.querySelector('.caption').closest('[aria-live], [role=status]'))") is False
    )
    assert browser.text("#spoken") == ""
    server.publish(server.finished(begun, "a <b>star</b>"))
    browser.wait(lambda: browser.text("#spoken") == "yard: a <b>star</b>", "the caption in the live region")
    began = time.monotonic()
    for number in range(8):  # more than anybody can listen to: they are told at least four seconds apart
        server.caption("yard", f"star {number}")
        browser.wait_text(".caption", f"star {number}")
    told = browser.js("return document.querySelectorAll('#spoken p').length")
    assert told <= 2 + (time.monotonic() - began) // 4
    state = browser.js("const s = document.querySelector('#spoken'); return [s.getAttribute('aria-live'), s.role]")
    assert state == ["polite", "log"]


def test_everything_is_reached_by_keyboard(browser: Browser, busy: StandIn) -> None:
    open_busy(browser, busy)
    active = "const a = document.activeElement; return [a.id || a.className, getComputedStyle(a).outlineStyle]"
    stops = []
    for _ in range(60):
        browser.press(Keys.TAB)
        stops.append(browser.js(active))
        if stops[-1][0] == "row" and sum(name == "row" for name, _ in stops) == 4:
            break
    names = [name for name, _ in stops]
    assert names[0] == "skip" and names.count("quiet solo") == 4 and names.count("caption-box") == 4
    assert {"live", "captioned", "quiet edit control", "quiet pause control", "theme", "help-open"} <= set(names)
    assert [name for name, outline in stops if outline == "none"] == []
    browser.press("j")  # already at the last
    browser.press("k")
    assert "gate" in browser.js("return document.activeElement.textContent")
    browser.press("k", "k", "p")
    browser.wait(lambda: busy.posts == [("/api/sources/yard/pause", {})], "the pause of the first camera")
    browser.press("v")
    browser.wait(lambda: browser.js("return document.querySelector('.card').dataset.view") == "captioned", "captioned")
    browser.press("h", Keys.ENTER)
    browser.wait_text("#viewer .viewer-text", "a star in the yard")
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: browser.js("return document.activeElement.className") == "row", "the focus back on the row")
    browser.press("e")
    browser.wait(lambda: browser.js("return document.activeElement.className") == "text", "the first question")
    browser.press(" j")  # a letter that is written is no shortcut
    assert browser.find(".prompt .text").get_attribute("value") == "Describe the image. j"
    browser.press(Keys.ESCAPE)
    browser.press("?")
    browser.wait(lambda: browser.js("return document.querySelector('#help').open"), "the help")
    assert re.findall(r"^(.) ", browser.find("#keys").text, re.MULTILINE) == list("jkpevhft?")
    browser.press(Keys.ESCAPE)
    assert browser.clean()


def test_history_is_walked_with_arrows_and_shown_large(browser: Browser, server: StandIn) -> None:
    browser.open(server.address)
    server.wait_listeners()
    for text in ("first", "second", "second", "third"):
        server.caption("yard", text)
    rows = "return [...document.querySelectorAll('.history .text')].map((n) => n.textContent.trim())"
    browser.wait(lambda: browser.js(rows) == ["third", "second", "first"], "the rows")
    browser.wait_text(".history li:nth-child(2) .when", "2 times")
    thumbs = "return [...document.querySelectorAll('.mini img')].map((i) => i.naturalWidth)"
    browser.wait(lambda: browser.js(thumbs) == [256] * 3, "the thumbnails")
    browser.press("h", Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)
    browser.wait_text(".viewer-text", "second")
    assert "/history/2.jpg" in browser.find(".viewer-picture img").get_attribute("src")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait_text(".viewer-text", "first")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    browser.wait_text(".viewer-text", "third")
    browser.press(Keys.ESCAPE)


def test_nothing_moves_for_who_does_not_want_it(browser: Browser, server: StandIn) -> None:
    browser.open(server.address)
    server.wait_listeners()
    begun = server.started("yard")
    server.publish(begun, server.delta(begun, "a", 0))
    browser.wait_text(".caption", "a")
    assert browser.js("return document.getAnimations().length") == 1  # the cursor
    browser.media({"prefers-reduced-motion": "reduce"})
    browser.wait(lambda: browser.js("return document.getAnimations().length") == 0, "no animation")
