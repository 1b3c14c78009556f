"""What a person does on the page reaches the daemon, and only who may control sees controls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.browser.chromium import Browser
from tests.browser.stand_in import KEY, PROMPT, StandIn, source_state

YARD = "/api/sources/yard"
PERSON = {
    "id": "person",
    "text": "Is anybody there?",
    "kind": "yes_no",
    "every_s": 5.0,
    "system": "Be brief.",
    "seed": 7,
}


@pytest.fixture
def page(browser: Browser, server: StandIn) -> Iterator[Browser]:
    server.state["sources"][0]["prompts"] = [dict(PROMPT), dict(PERSON)]
    browser.open(server.address)
    server.wait_listeners()
    yield browser


def closed(page: Browser) -> None:
    page.wait(lambda: page.js("return !document.querySelector('#prompts').open"), "the dialog closed")


def test_pause_and_resume_reach_the_daemon(page: Browser, server: StandIn) -> None:
    page.find(".pause").click()
    page.wait_text(".status", "Live, captions paused")
    page.wait_text(".pause", "Resume")
    page.find(".pause").click()
    page.wait(lambda: page.text(".status") == "Live", "captions again")
    assert server.posts == [(f"{YARD}/pause", {}), (f"{YARD}/resume", {})]
    assert page.clean()


def test_prompts_are_changed_added_moved_and_removed(page: Browser, server: StandIn) -> None:
    page.find(".edit").click()
    text = page.find(".prompt .text")
    text.clear()
    text.send_keys("What <b>is</b> it?")
    page.find(".prompt-list li:nth-child(2) .up").click()
    page.find("#prompts .add").click()
    third = ".prompt-list li:nth-child(3) "
    page.find(third + ".text").send_keys("How many?")
    Select(page.find(third + ".kind")).select_by_value("json")
    page.find(third + ".schema").send_keys('{"type": "object"}')
    page.find(third + ".every").clear()
    page.find(third + ".every").send_keys("2.5")
    page.find('#prompts [type="submit"]').click()
    closed(page)
    ((path, body),) = server.posts
    assert path == f"{YARD}/prompts"
    first, second, added = body["prompts"]
    assert first == {**PERSON, "max_new_tokens": 96}  # settings that the dialog does not show are kept
    assert second == {**PROMPT, "text": "What <b>is</b> it?"}
    assert added == {
        "id": "prompt-3", "text": "How many?", "kind": "json", "schema": {"type": "object"}, "every_s": 2.5,
        "max_new_tokens": 96,
    }  # fmt: skip
    page.find(".edit").click()
    page.find(third + ".remove").click()
    page.find('#prompts [type="submit"]').click()
    closed(page)
    assert [prompt["id"] for prompt in server.posts[1][1]["prompts"]] == ["person", "describe"]
    assert page.clean()


def test_the_cadence_reaches_the_daemon(page: Browser, server: StandIn) -> None:
    page.find(".edit").click()
    page.find(".cadence").clear()
    page.find(".cadence").send_keys("0.5")
    page.find('#prompts [type="submit"]').click()
    closed(page)
    assert server.posts[0] == (f"{YARD}/cadence", {"captions_per_s": 0.5})


def test_what_the_daemon_refuses_is_told_in_the_dialog_and_nothing_is_lost(page: Browser, server: StandIn) -> None:
    server.refuse[f"{YARD}/prompts"] = "source yard: prompt 1: id has <b>spaces</b>"
    page.find(".edit").click()
    page.find(".prompt .id").send_keys(" x y")
    page.find('#prompts [type="submit"]').click()
    page.wait_text("#prompts .error", "source yard: prompt 1: id has <b>spaces</b>")
    assert page.find(".prompt .id").get_attribute("value") == "describe x y"
    Select(page.find(".prompt .kind")).select_by_value("json")
    page.find(".prompt .schema").send_keys("{nonsense")
    page.find('#prompts [type="submit"]').click()
    page.wait_text("#prompts .error", "The schema of describe x y is no JSON")
    assert len(server.posts) == 1  # what is no JSON was not sent
    page.find("#prompts .cancel").click()
    closed(page)


def test_who_may_only_read_sees_no_controls(browser: Browser, server: StandIn) -> None:
    server.state["may"] = ["read"]
    browser.open(server.address)
    server.wait_listeners()
    server.caption("yard", "a star")
    browser.wait_text(".caption", "a star")
    assert browser.js("return [...document.querySelectorAll('.control')].every((n) => n.hidden)")
    browser.press("p", "e")
    assert not browser.js("return document.querySelector('#prompts').open") and server.posts == []


def test_a_key_is_asked_for_and_never_stands_in_an_address(browser: Browser) -> None:
    server = StandIn([source_state("yard")], key=KEY)
    try:
        browser.open(server.address)
        key = browser.find("#login-key")
        browser.wait(key.is_displayed, "the form")
        assert browser.text("#cameras") == ""
        key.send_keys("wrong", Keys.ENTER)
        browser.wait_text("#login .error", "The key is not known")
        browser.press(Keys.ESCAPE, Keys.ESCAPE, Keys.ESCAPE)
        browser.wait(key.is_displayed, "the form again: there is nothing behind it")
        key.clear()
        key.send_keys(KEY, Keys.ENTER)
        browser.wait_text(".card h2", "yard")
        browser.wait(lambda: not key.is_displayed(), "the form gone")
        browser.wait_text("#link", "Connected")
        assert not [request for request in server.requests if "tests" in request or "wrong" in request]
        kept = browser.js("return JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie")
        assert KEY not in kept and "a session" not in kept
    finally:
        server.close()
