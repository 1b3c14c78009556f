"""The rules of a source keep their states over new settings, and none stays active when nobody looks any more."""

from __future__ import annotations

from runtime.captiond.captioning.rule_set import RuleSet
from runtime.captiond.config.settings import RuleSettings
from runtime.captiond.events import Event, RuleChanged
from tests.runtime.captiond.sample_events import finished

PERSON = RuleSettings(name="person", prompt="scene", value="yes")
ANIMAL = RuleSettings(name="animal", prompt="scene", op="in", value=["yes", "maybe"])
YES = finished(5, "yes", prompt_id="scene", fields={"answer": "yes"})


def test_rules_that_are_ended_become_inactive_once() -> None:
    told: list[Event] = []
    rules = RuleSet((PERSON, RuleSettings(name="nobody", prompt="scene", value="no")), told.append)
    rules.apply(YES)
    rules.end()
    rules.end()
    assert told == [
        RuleChanged("door", "person", True, "yes", 5, YES.frame),
        RuleChanged("door", "person", False, None, 5, YES.frame),
    ]


def test_rules_that_are_the_same_go_on_and_the_others_are_left_to_be_ended() -> None:
    told: list[Event] = []
    before = RuleSet((PERSON, ANIMAL), told.append)
    before.apply(YES)
    after = RuleSet((RuleSettings(name="person", prompt="scene", value="no"), ANIMAL), told.append)
    after.follow(before)
    before.end()
    assert after.active == {"person": False, "animal": True}
    assert [(change.rule, change.active) for change in told[2:] if isinstance(change, RuleChanged)] == [
        ("person", False)
    ]


def test_answers_of_other_prompts_and_without_fields_change_nothing() -> None:
    told: list[Event] = []
    rules = RuleSet((PERSON,), told.append)
    rules.apply(finished(5, "yes", prompt_id="other", fields={"answer": "yes"}))
    rules.apply(finished(6, "yes", prompt_id="scene", fields=None))
    assert not told and rules.active == {"person": False}
