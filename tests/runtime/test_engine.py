"""The owner thread and its queue, with jobs of a few lines."""

from __future__ import annotations

import threading

import pytest

from runtime.engine import Owner
from runtime.errors import BusyError, ClosedError, UsageError
from runtime.scheduling import Share


class Step:
    """A job of two units that waits for its gate, if it has one, and notes what happens to it."""

    def __init__(
        self, log: list[str], name: str, *, gate: threading.Event | None = None, share: Share | None = None
    ) -> None:
        self.log, self.name, self.gate, self.share = log, name, gate, share or Share()
        self.started, self.ended = threading.Event(), threading.Event()
        self.is_over = False
        self.units = 2

    def step(self, alone: bool) -> bool:
        self.started.set()
        if self.gate is not None and self.units == 2:
            self.gate.wait(10)
        self.units -= 1
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
        return False


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
