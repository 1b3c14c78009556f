"""What every command does with errors and signals."""

from __future__ import annotations

import argparse
import json
import os
import signal

import pytest

from export.command import positive, run_command
from runtime.errors import ExportError


def test_work_that_ends_well_exits_zero(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    assert run_command(lambda: done.append(1), as_json=True, interrupted="stopped") == 0
    assert done == [1]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_told_with_its_hint_and_its_exit_code(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ExportError("config.json is missing", hint="copy it")

    assert run_command(work, as_json=as_json, interrupted="stopped") == 4
    shown = capsys.readouterr()
    assert shown.err == "error: config.json is missing\nhint: copy it\n"
    expected = {"error": "config.json is missing", "hint": "copy it", "exit_code": 4}
    assert [json.loads(line) for line in shown.out.splitlines()] == ([expected] if as_json else [])


def test_an_interrupt_exits_130_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise KeyboardInterrupt

    assert run_command(work, as_json=False, interrupted="nothing was changed") == 130
    assert capsys.readouterr().err == "nothing was changed\n"


def test_a_termination_unwinds_and_exits_143() -> None:
    before, unwound = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)

    with pytest.raises(SystemExit) as stopped:
        run_command(work, as_json=False, interrupted="stopped")
    assert stopped.value.code == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_counts_start_at_one() -> None:
    assert positive("1") == 1
    with pytest.raises(argparse.ArgumentTypeError, match="0 is below 1"):
        positive("0")
