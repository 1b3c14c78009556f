"""Counting captions and scoring them against the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.tally import Tally, Truth, read_truth
from runtime.types import Answer, Timings, Usage


def answer(text: str, ttft_ms: float = 10.0, steps: int = 4, decode_ms: float = 100.0) -> Answer:
    timings = Timings(decode_ms=decode_ms, ttft_ms=ttft_ms, decode_tokens_per_s=steps / decode_ms * 1e3)
    return Answer(text, (1,), (-0.1,), "stop", Usage(1, 1), timings)


def test_rates_are_of_all_tokens_over_all_time_and_the_first_token_is_a_median() -> None:
    tally = Tally()
    for ttft_ms, steps in ((10.0, 1), (30.0, 9), (500.0, 20)):
        assert tally.add(0, answer("x", ttft_ms, steps)) == {}
    assert tally.figures(7) == {"frames": 7, "captions": 3, "tokens_per_s": 100.0, "ttft_ms_median": 30.0}
    assert tally.line("m", 7) == "m: 7 frames, 3 captions, 100.0 tokens/s, first token after 30.0 ms"


def test_scores_count_all_and_unambiguous_frames_and_leave_out_the_unknown() -> None:
    tally = Tally({0: Truth("a", False), 1: Truth("b", True), 2: Truth("c", False)})
    notes = [tally.add(frame, answer(text)) for frame, text in enumerate(["a", "b ", "x", "y"])]
    assert [note.get("exact") for note in notes] == [True, True, False, None]
    figures = tally.figures(4)
    assert (figures["exact"], figures["scored"], figures["exact_share"]) == (2, 3, 0.6667)
    assert (figures["exact_unambiguous"], figures["scored_unambiguous"]) == (1, 2)
    assert tally.line("m", 4).endswith("exact 2/3 (66.7 %), unambiguous 1/2 (50.0 %)")


def test_run_without_captions_has_no_rates() -> None:
    assert (
        Tally({}).line("m", 0)
        == "m: 0 frames, 0 captions, 0.0 tokens/s, first token after - ms, exact 0/0, unambiguous 0/0"
    )


def test_truth_file_is_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    path.write_text('{"frame": 3, "caption": "a red circle", "ambiguous": true}\n')
    assert read_truth(path) == {3: Truth("a red circle", True)}
    for bad in ("{", '{"frame": 0}', "[]", '{"frame": "x", "caption": "", "ambiguous": false}'):
        path.write_text('{"frame": 3, "caption": "a", "ambiguous": true}\n' + bad)
        with pytest.raises(ConfigError, match=r"truth.jsonl:2: not a line of truth"):
            read_truth(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_truth(tmp_path / "nothing")
