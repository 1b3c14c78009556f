"""Where captions go: the terminal, or JSON lines. Called by `runtime.caption`; a sink writes, it computes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol, TextIO

from runtime.errors import OutputError
from runtime.printable import printable
from runtime.types import Answer, Delta
from runtime.watch import Caption

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Sink(Protocol):
    """Takes captions as they are written: ``begin``, any number of ``delta``, then ``end``."""

    def begin(self, caption: Caption) -> None:
        """A frame was taken and its caption is being written."""

    def delta(self, delta: Delta) -> None:
        """The next piece of it."""

    def end(self, caption: Caption, answer: Answer, notes: Mapping[str, object]) -> None:
        """It is complete; ``notes`` holds what else is known of the frame, such as its true caption."""

    def summary(self, line: str, figures: Mapping[str, object]) -> None:
        """The last thing of a run."""


class TerminalSink:
    """One line per frame, token by token where ``live`` (a terminal), whole otherwise; colours with ``color``."""

    def __init__(self, out: TextIO, *, live: bool, color: bool) -> None:
        self._out = out
        self._live = live
        self._color = color

    def begin(self, caption: Caption) -> None:
        if self._live:
            self._write(self._head(caption))

    def delta(self, delta: Delta) -> None:
        if self._live:
            self._write(printable(delta.text))

    def end(self, caption: Caption, answer: Answer, notes: Mapping[str, object]) -> None:
        line = "" if self._live else self._head(caption) + printable(answer.text)
        facts = [f"age {age_ms:.0f} ms"] if (age_ms := caption.age_first_ms) is not None else []
        facts.append(f"{answer.timings.decode_tokens_per_s:.0f} tok/s")
        facts += ["ended by " + answer.finish_reason] if answer.finish_reason != "stop" else []
        facts += [f"{caption.skipped} skipped"] if caption.skipped else []
        facts += [f"truth: {printable(str(notes['truth']))}"] if notes.get("exact") is False else []
        self._write(f"{line}  {self._dim('(' + ', '.join(facts) + ')')}\n")

    def summary(self, line: str, figures: Mapping[str, object]) -> None:
        self._write(line + "\n")

    def _head(self, caption: Caption) -> str:
        return self._dim(f"frame {caption.seq:>5}") + "  "

    def _dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._color else text

    def _write(self, text: str) -> None:
        _write(self._out, text)


class JsonlSink:
    """One JSON object per line: type "caption" per frame, type "summary" at the end. ASCII, whole lines, flushed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self, caption: Caption) -> None:
        """Nothing: a line is written when it is whole."""

    def delta(self, delta: Delta) -> None:
        """Nothing, as above."""

    def end(self, caption: Caption, answer: Answer, notes: Mapping[str, object]) -> None:
        self._line(
            {
                "type": "caption",
                "source": caption.source,
                "frame": caption.seq,
                "skipped": caption.skipped,
                "t_capture_ns": caption.t_capture_ns,
                "t_capture_kind": caption.t_capture_kind,
                "age_first_ms": _rounded(caption.age_first_ms),
                "age_last_ms": _rounded(caption.age_last_ms),
                "text": answer.text,
                "tokens": answer.usage.completion_tokens,
                "finish_reason": answer.finish_reason,
                "timings": {name: _rounded(value) for name, value in answer.timings.as_dict().items()},
                **notes,
            }
        )

    def summary(self, line: str, figures: Mapping[str, object]) -> None:
        self._line({"type": "summary", **figures})

    def _line(self, fields: Mapping[str, object]) -> None:
        _write(self._out, json.dumps(fields) + "\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _write(out: TextIO, text: str) -> None:
    try:
        out.write(text)
        out.flush()
    except OSError as error:
        raise OutputError(f"standard output takes no more: {error.strerror or error}") from error
