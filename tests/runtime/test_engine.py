"""The owner thread and its queue, with jobs of a few lines."""

from __future__ import annotations

import threading

import pytest

from runtime.engine import Owner
from runtime.errors import BusyError, ClosedError, DeviceLostError, UsageError
from runtime.scheduling import Share


class Step:
    """A job of two units that waits for its gate, if it has one, and notes what happens to it."""

    def __init__(
        self, log: list[str], name: str, *, gate: threading.Event | None = None, share: Share | None = None
    ) -> None:
        self.log, self.name, self.gate, self.share = log, name, gate, share or Share()
        self.started, self.ended = threading.Event(), threading.Event()
        self.is_over = self.is_ending = False
        self.units = 2
        self.failure: Exception | None = None
        self.trace: list[tuple[str, bool]] | None = None

    def step(self, alone: bool) -> bool:
        self.started.set()
        if self.gate is not None and self.units == 2:
            self.gate.wait(10)
        if self.trace is not None:
            self.trace.append((self.name, alone))
        if self.failure is not None:
            raise self.failure
        self.units = 0 if self.is_ending else self.units - 1
        if self.units:
            return True
        self.log.append(self.name)
        self.ended.set()
        return False

    def stop(self) -> None:
        self.log.append(f"stop {self.name}")
        if self.gate is not None:
            self.gate.set()

    def refuse(self, error: Exception) -> None:
        self.log.append(f"refuse {self.name}: {type(error).__name__}")

    def over(self) -> bool:
        return self.is_over

    def ending(self) -> bool:
        return self.is_ending


def test_jobs_run_in_order_on_one_thread() -> None:
    owner, log = Owner(max_pending=10), []
    jobs = [Step(log, str(index)) for index in range(5)]
    for job in jobs:
        owner.submit(job)
    assert owner.call(threading.get_ident) == owner.thread_id
    assert log == ["0", "1", "2", "3", "4"]
    owner.close()


def test_a_job_that_is_over_while_it_waits_is_dropped_between_tokens_of_another() -> None:
    owner, log, gate = Owner(max_pending=1), [], threading.Event()
    running, waiting = Step(log, "running", gate=gate), Step(log, "waiting")
    owner.submit(running)
    assert running.started.wait(10)
    owner.submit(waiting)
    with pytest.raises(BusyError):
        owner.submit(Step(log, "third"))
    waiting.is_over = True
    gate.set()
    assert running.ended.wait(10)
    owner.call(lambda: None)
    assert log == ["running"]
    owner.close()


def test_call_hands_over_result_and_error() -> None:
    owner = Owner(max_pending=1)
    assert owner.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        owner.call(lambda: 1 / 0)
    assert owner.call(lambda: 8) == 8
    owner.close()


def test_close_stops_the_running_job_refuses_the_rest_and_runs_the_exit_function_once() -> None:
    owner, log, gate = Owner(max_pending=5), [], threading.Event()
    owner.at_exit(lambda: log.append("exit"))
    running = Step(log, "running", gate=gate)
    owner.submit(running)
    assert running.started.wait(10)
    owner.submit(Step(log, "waiting"))
    owner.close()
    owner.close()
    assert log == ["stop running", "running", "refuse waiting: ClosedError", "exit"]
    with pytest.raises(ClosedError):
        owner.submit(Step(log, "late"))
    with pytest.raises(ClosedError):
        owner.call(lambda: None)


def test_failing_exit_function_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner(max_pending=1)
    owner.at_exit(lambda: 1 / 0)
    owner.close()
    assert "closing the engines failed" in caplog.text


def test_queue_without_places_is_refused() -> None:
    with pytest.raises(UsageError, match="max_pending is 0"):
        Owner(max_pending=0)
    with pytest.raises(UsageError, match="parallel is 0"):
        Owner(max_pending=1, parallel=0)


# --- several at once ------------------------------------------------------------------------------------------------


class Yard:
    """An owner that stands still until `run`, so that jobs come in a known order, and the units that it gave."""

    def __init__(self, *, parallel: int, max_pending: int = 20) -> None:
        self.owner, self.log, self.gate = Owner(max_pending=max_pending, parallel=parallel), [], threading.Event()
        self.trace: list[tuple[str, bool]] = []
        first = Step(self.log, "first", gate=self.gate, share=Share(1000))
        self.owner.submit(first)
        assert first.started.wait(10)

    def submit(self, name: str, units: int, priority: int = 0, weight: float = 1.0) -> Step:
        job = Step(self.log, name, share=Share(priority, weight))
        job.units, job.trace = units, self.trace
        self.owner.submit(job)
        return job

    def run(self) -> str:
        """The names of the jobs, one letter for each unit, once all are through."""
        self.gate.set()
        while True:
            with self.owner._changed:
                if not self.owner._queue and not len(self.owner._running):
                    break
            threading.Event().wait(0.001)
        self.owner.close()
        return "".join(name for name, _ in self.trace)


def test_jobs_that_run_at_once_take_turns_and_the_next_begins_where_one_ends() -> None:
    yard = Yard(parallel=3)
    for name, units in (("a", 4), ("b", 2), ("c", 3), ("d", 2)):
        yard.submit(name, units)
    assert yard.run() == "abcabcdacda"
    assert yard.log == ["first", "b", "c", "d", "a"]


def test_one_place_is_first_come_first_served_whatever_the_weights() -> None:
    yard = Yard(parallel=1)
    for name in "abc":
        yard.submit(name, 3, weight=5.0 if name == "c" else 1.0)
    assert yard.run() == "aaabbbccc"
    assert all(alone for _, alone in yard.trace)


def test_a_higher_priority_begins_before_those_that_wait_and_takes_no_place_from_who_runs() -> None:
    yard = Yard(parallel=1)
    yard.submit("a", 2)
    yard.submit("b", 2)
    yard.submit("H", 2, priority=5)
    yard.submit("h", 2, priority=5)
    assert yard.run() == "HHhhaabb"


def test_while_a_higher_priority_runs_lower_ones_keep_their_place_and_wait() -> None:
    yard = Yard(parallel=3)
    yard.submit("a", 3)
    yard.submit("H", 3, priority=5)
    yard.submit("I", 2, priority=5)
    assert yard.run() == "HIHIHaaa"
    assert [alone for _, alone in yard.trace] == [False] * 4 + [True] * 4


def test_weights_share_the_units() -> None:
    yard = Yard(parallel=3)
    yard.submit("a", 30, weight=1.0)
    yard.submit("b", 90, weight=3.0)
    names = yard.run()
    half = names[:60]
    assert half.count("b") == pytest.approx(3 * half.count("a"), abs=3)


def test_whoever_was_stopped_is_next_even_below_a_higher_priority() -> None:
    yard = Yard(parallel=3)
    low = yard.submit("l", 50)
    yard.submit("H", 10, priority=5)
    low.is_ending = True
    assert yard.run() == "l" + "H" * 10


def test_max_pending_counts_those_behind_the_free_places() -> None:
    yard = Yard(parallel=3, max_pending=2)
    for name in "abcd":  # two find a place, two wait
        yard.submit(name, 2)
    with pytest.raises(BusyError, match="2 requests wait already, the limit is 2"):
        yard.submit("e", 2)
    assert sorted(yard.run()) == sorted("aabbccdd")


def test_a_lost_device_ends_whoever_runs_or_waits_and_whoever_comes_later() -> None:
    yard = Yard(parallel=2)
    failing = yard.submit("x", 5)
    failing.failure = DeviceLostError("the context is lost", hint="start again")
    for name in "bcd":
        yard.submit(name, 9)
    yard.run()
    assert sorted(entry for entry in yard.log if entry.startswith("refuse")) == [
        f"refuse {name}: DeviceLostError" for name in "bcd"
    ]
    owner = Owner(max_pending=1)
    job = Step([], "x")
    job.failure = DeviceLostError("the context is lost", hint="start again")
    owner.submit(job)
    assert job.started.wait(10)
    while owner._lost is None:
        threading.Event().wait(0.001)
    for late in (lambda: owner.submit(Step([], "late")), lambda: owner.call(lambda: 1)):
        with pytest.raises(DeviceLostError, match="the context is lost") as caught:
            late()
        assert caught.value.hint == "start again"
    owner.close()


def test_close_lets_each_that_runs_hear_it_and_refuses_the_others() -> None:
    owner, log, gate = Owner(max_pending=9, parallel=2), [], threading.Event()
    running = [Step(log, name, gate=gate) for name in "ab"]
    for job in [*running, Step(log, "c")]:
        owner.submit(job)
    assert running[0].started.wait(10)
    closer = threading.Thread(target=owner.close)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()
    assert sorted(log[:2]) == ["stop a", "stop b"] and log[-1] == "refuse c: ClosedError"
    assert {"a", "b"} <= set(log)
