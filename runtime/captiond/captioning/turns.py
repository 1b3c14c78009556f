"""When a source is captioned next, and with which prompt: pure arithmetic on CLOCK_MONOTONIC ns, no clock inside."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.config.settings import PromptSettings

_FIRST_REST_S, _LONGEST_REST_S = 0.5, 30.0


class Cadence:
    """Due times at equal distances from ``now_ns`` on.

    They do not drift with the time that a caption takes, and do not pile up: of those that passed meanwhile the latest
    counts, the others are ``missed``. ``per_s`` 0: always due.
    """

    def __init__(self, per_s: float, now_ns: int) -> None:
        self.per_s = per_s
        self.missed = 0
        self._period_ns = round(NS_PER_S / per_s) if per_s > 0 else 0
        self._due_ns = now_ns

    def wait_ns(self, now_ns: int) -> int:
        """Nanoseconds until it is due, 0 when it is."""
        return max(0, self._due_ns - now_ns) if self._period_ns else 0

    def begun(self, now_ns: int) -> None:
        """A caption begins now."""
        if self._period_ns:
            self._due_ns += self._period_ns
            passed = max(0, now_ns - self._due_ns) // self._period_ns
            self._due_ns += passed * self._period_ns
            self.missed += passed


class Rotation:
    """Prompts in turn: the next one of those that are due. One that fails rests, longer each time, up to 30 s."""

    def __init__(self, prompts: Sequence[PromptSettings], now_ns: int) -> None:
        self.prompts = tuple(prompts)
        self._cadences = [Cadence(1 / prompt.every_s if prompt.every_s > 0 else 0.0, now_ns) for prompt in prompts]
        self._rest_until_ns = [now_ns] * len(prompts)
        self._rest_s = [_FIRST_REST_S] * len(prompts)
        self._last = len(prompts) - 1

    @property
    def paced(self) -> bool:
        """Whether there are times at which no prompt is due."""
        return all(prompt.every_s > 0 for prompt in self.prompts)

    def wait_ns(self, now_ns: int) -> int:
        """Nanoseconds until a prompt is due, 0 when one is."""
        return min(self._wait_ns(index, now_ns) for index in range(len(self.prompts)))

    def due(self, now_ns: int) -> PromptSettings | None:
        """The next one in turn that is due."""
        count = len(self.prompts)
        turns = [(self._last + 1 + step) % count for step in range(count)]
        return next((self.prompts[index] for index in turns if self._wait_ns(index, now_ns) == 0), None)

    def begun(self, prompt: PromptSettings, now_ns: int) -> None:
        """It is asked now."""
        self._last = self.prompts.index(prompt)
        self._cadences[self._last].begun(now_ns)

    def answered(self, prompt: PromptSettings) -> None:
        """It went well."""
        self._rest_s[self.prompts.index(prompt)] = _FIRST_REST_S

    def failed(self, prompt: PromptSettings, now_ns: int) -> None:
        """It did not: the same question would fail again at once."""
        index = self.prompts.index(prompt)
        self._rest_until_ns[index] = now_ns + round(self._rest_s[index] * NS_PER_S)
        self._rest_s[index] = min(2 * self._rest_s[index], _LONGEST_REST_S)

    def _wait_ns(self, index: int, now_ns: int) -> int:
        return max(self._cadences[index].wait_ns(now_ns), self._rest_until_ns[index] - now_ns, 0)
