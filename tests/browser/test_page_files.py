"""The page's files: small, readable, from one place, and with nothing inline that its policy would have to allow."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser.stand_in import PAGE

FILES = sorted(PAGE.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MAX_BYTES = 150_000


class Tags(HTMLParser):
    """Every element with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.inline += data.strip()


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in FILES) <= MAX_BYTES
    assert {path.suffix for path in FILES} == {".html", ".css", ".js", ".svg"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_make_no_markup_of_text(script: Path) -> None:
    text = script.read_text()
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setHTML|DOMParser|javascript:"
    )
    assert re.findall(forbidden, text) == []
    assert set(re.findall(r"https?://[^\"'`\s]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert text.startswith("//"), "says what it is for"
    assert len(text.splitlines()) <= 300
    if shutil.which("node"):
        done = subprocess.run(["node", "--check", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    tags = Tags()
    tags.feed((PAGE / "index.html").read_text())
    assert tags.inline == ""
    attributes = [(tag, name, value or "") for tag, given in tags.found for name, value in given.items()]
    assert [found for found in attributes if found[1].startswith("on") or found[1] == "style"] == []
    sources = {value for _, name, value in attributes if name in ("src", "href")}
    assert all(source.startswith(("page/", "#")) for source in sources)
    assert all((PAGE / source[5:]).is_file() for source in sources if source.startswith("page/"))
    assert not re.search(r"url\(|@import|https?:", (PAGE / "style.css").read_text())


def test_every_module_is_there_and_used() -> None:
    texts = {path.name: path.read_text() for path in SCRIPTS}
    imported = {name for text in texts.values() for name in re.findall(r'from "\./([a-z]+\.js)"', text)}
    html = (PAGE / "index.html").read_text()
    assert imported | {name for name in texts if f"page/{name}" in html} == set(texts)
