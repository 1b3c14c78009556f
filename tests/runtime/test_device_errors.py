"""Errors of kernels and drivers in the runtime's words: what was being done, what happened, what to do."""

from __future__ import annotations

import re

import pytest

from kernels.errors import (
    ArrayError,
    CompileError,
    DeviceError,
    ImageError,
    KernelError,
    NoDeviceError,
    OutOfMemoryError,
    StickyError,
)
from kernels.state import STATUS_BAD_LOGITS, STATUS_BAD_TOKEN, STATUS_FULL
from runtime.device_errors import device_errors, status_error
from runtime.errors import EngineError, MemoryLimitError, VlmError


@pytest.mark.parametrize(
    ("problem", "expected", "hint"),
    [
        (OutOfMemoryError("full", requested=3 << 20), MemoryLimitError, "kv='i8'"),
        (StickyError("illegal address"), EngineError, "start the process again"),
        (NoDeviceError("none"), EngineError, "runtime.doctor"),
        (ImageError("none fits"), EngineError, "kernels.build"),
        (CompileError("no g++"), EngineError, "kernels.build"),
        (DeviceError("refused"), EngineError, None),
        (ArrayError("x is f32"), EngineError, None),
    ],
)
def test_each_error_becomes_one_that_users_know(
    problem: KernelError, expected: type[VlmError], hint: str | None
) -> None:
    with pytest.raises(expected, match=re.escape(f"opening: {problem.message}")) as caught, device_errors("opening"):
        raise problem
    assert caught.value.__cause__ is problem
    assert caught.value.hint is None if hint is None else hint in str(caught.value.hint)


def test_the_drivers_own_hint_wins() -> None:
    with pytest.raises(EngineError) as caught, device_errors("opening"):
        raise NoDeviceError("none", hint="modprobe nvidia")
    assert caught.value.hint == "modprobe nvidia"


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), device_errors("opening"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("status", "texts"),
    [
        (STATUS_BAD_LOGITS, ["not finite"]),
        (STATUS_BAD_TOKEN | STATUS_FULL, ["outside the table", "beyond the KV cache"]),
        (1 << 20, ["0x100000"]),
        (0, ["status 0x0"]),
    ],
)
def test_status_bits_are_spelt_out(status: int, texts: list[str]) -> None:
    error = status_error(status, "at position 7")
    assert "at position 7" in error.message and all(text in error.message for text in texts)
