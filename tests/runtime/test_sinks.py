"""What reaches a terminal, and what does not."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import OutputError
from runtime.printable import printable
from runtime.sinks import JsonlSink, TerminalSink


@given(st.text())
def test_no_control_or_direction_character_survives(text: str) -> None:
    left = printable(text)
    assert all(unicodedata.category(char) not in ("Cc", "Zl", "Zp") for char in left)
    assert all(
        unicodedata.bidirectional(char) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for char in left
    )


def test_words_of_all_scripts_survive_and_line_breaks_become_one_space() -> None:
    assert printable("ein rotes Kreuz, 红色, أحمر 😀") == "ein rotes Kreuz, 红色, أحمر 😀"
    assert printable("a\r\n\n b\tc") == "a  b c"


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("sink", [TerminalSink(FullDisk(), live=True, color=False), JsonlSink(FullDisk())])
def test_output_that_takes_no_more_is_a_typed_error(sink: TerminalSink | JsonlSink) -> None:
    with pytest.raises(OutputError, match="takes no more: No space left"):
        sink.summary("line", {})
