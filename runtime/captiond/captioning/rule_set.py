"""The rules of one source: each reads the answers of its prompt, and tells when it becomes active or inactive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from runtime.captiond.captioning.answers import field_value
from runtime.captiond.config.settings import RuleSettings
from runtime.captiond.events import CaptionFinished, Event, RuleChanged
from runtime.captiond.rules import RuleState


class RuleSet:
    """Rules with their states, and the answer on which each stands."""

    def __init__(self, rules: Sequence[RuleSettings], publish: Callable[[Event], None]) -> None:
        self._publish = publish
        self._states = [(rule, RuleState(rule)) for rule in rules]
        self._grounds: dict[str, CaptionFinished] = {}

    @property
    def active(self) -> Mapping[str, bool]:
        """Whether each rule is active."""
        return {rule.name: state.active for rule, state in self._states}

    def apply(self, finished: CaptionFinished) -> None:
        """A caption is whole; one without fields says nothing."""
        if finished.fields is None:
            return
        for rule, state in self._states:
            if rule.prompt == finished.prompt_id:
                active = state.step(finished.fields, finished.frame.t_capture_ns)
                if active is not None:
                    self._grounds[rule.name] = finished
                    self._tell(rule, active, field_value(finished.fields, rule.field))

    def follow(self, before: RuleSet) -> None:
        """Go on from the states of rules that were not changed: nothing is told twice."""
        left = list(before._states)
        for index, (rule, _) in enumerate(self._states):
            same = next((entry for entry in left if entry[0] == rule), None)
            if same is not None:
                left.remove(same)
                self._states[index] = same
        self._grounds = {**before._grounds}
        before._states = left

    def end(self) -> None:
        """These rules are watched no more: the active ones become inactive, with no value."""
        for rule, state in self._states:
            if state.active:
                self._tell(rule, False, None)
        self._states = []

    def _tell(self, rule: RuleSettings, active: bool, value: object) -> None:
        grounds = self._grounds[rule.name]
        frame = grounds.frame
        self._publish(RuleChanged(frame.source, rule.name, active, value, grounds.caption, frame))
