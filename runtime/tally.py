"""Counts over a run of captions, and how many of them are true. Called by `runtime.caption`."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ConfigError
from runtime.types import Answer

MAX_TRUTH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Truth:
    """What a frame shows; ``ambiguous`` where a person could call it otherwise."""

    caption: str
    ambiguous: bool


def read_truth(path: str | os.PathLike[str]) -> dict[int, Truth]:
    """Read JSON lines ``{"frame": 0, "caption": "…", "ambiguous": false}``. Raises ConfigError naming the line."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_TRUTH_BYTES:
            raise ConfigError(f"{file}: {file.stat().st_size} bytes, the most is {MAX_TRUTH_BYTES}")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text ({error})", hint="--truth takes JSON lines") from error
    truth: dict[int, Truth] = {}
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            truth[int(fields["frame"])] = Truth(str(fields["caption"]), bool(fields["ambiguous"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}:{number}: not a line of truth ({type(error).__name__}: {error})",
                hint='{"frame": 0, "caption": "a red circle", "ambiguous": false}',
            ) from error
    return truth


class Tally:
    """Adds up what a run did. ``truth`` maps frame numbers to what they show; frames without one are not scored."""

    def __init__(self, truth: Mapping[int, Truth] | None = None) -> None:
        self._truth = truth
        self._captions = 0
        self._steps = 0.0
        self._decode_s = 0.0
        self._ttft_ms: list[float] = []
        self._right = {True: 0, False: 0}  # by ambiguity
        self._scored = {True: 0, False: 0}

    def add(self, frame: int, answer: Answer) -> dict[str, object]:
        """Count one caption; what its truth says about it, for the sink."""
        timings = answer.timings
        self._captions += 1
        self._steps += timings.decode_tokens_per_s * timings.decode_ms / 1e3
        self._decode_s += timings.decode_ms / 1e3
        self._ttft_ms.append(timings.ttft_ms)
        known = None if self._truth is None else self._truth.get(frame)
        if known is None:
            return {}
        exact = answer.text.strip() == known.caption
        self._scored[known.ambiguous] += 1
        self._right[known.ambiguous] += exact
        return {"truth": known.caption, "ambiguous": known.ambiguous, "exact": exact}

    def figures(self, frames: int) -> dict[str, object]:
        """The run as numbers; ``frames`` is how many the source has delivered."""
        figures: dict[str, object] = {
            "frames": frames,
            "captions": self._captions,
            "tokens_per_s": round(self._steps / self._decode_s, 1) if self._decode_s else 0.0,
            "ttft_ms_median": round(statistics.median(self._ttft_ms), 1) if self._ttft_ms else None,
        }
        if self._truth is not None:
            scored, right = sum(self._scored.values()), sum(self._right.values())
            figures |= {"scored": scored, "exact": right, "exact_share": _share(right, scored)}
            scored, right = self._scored[False], self._right[False]
            figures |= {
                "scored_unambiguous": scored,
                "exact_unambiguous": right,
                "exact_unambiguous_share": _share(right, scored),
            }
        return figures

    def line(self, name: str, frames: int) -> str:
        """The run as one line."""
        figures = self.figures(frames)
        ttft = figures["ttft_ms_median"]
        parts = [
            f"{name}: {frames} frames",
            f"{figures['captions']} captions",
            f"{figures['tokens_per_s']} tokens/s",
            f"first token after {'-' if ttft is None else ttft} ms",
        ]
        if self._truth is not None:
            parts.append(_score("exact", figures["exact"], figures["scored"], figures["exact_share"]))
            unambiguous = (
                figures[key] for key in ("exact_unambiguous", "scored_unambiguous", "exact_unambiguous_share")
            )
            parts.append(_score("unambiguous", *unambiguous))
        return ", ".join(parts)


def _share(right: int, scored: int) -> float | None:
    return round(right / scored, 4) if scored else None


def _score(name: str, right: object, scored: object, share: object) -> str:
    percent = f" ({100 * share:.1f} %)" if isinstance(share, float) else ""
    return f"{name} {right}/{scored}{percent}"
