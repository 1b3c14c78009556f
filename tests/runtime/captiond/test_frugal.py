"""Memory that a process gives back, seen from outside through /proc."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.imports import ROOT

SHOW = """
import ctypes, re, sys
from runtime.captiond.frugal import give_memory_back, let_go_of_code

def kb(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1])
"""


def printed(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", SHOW + code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(number) for number in re.findall(r"-?\d+", done.stdout)]


def test_buffers_go_back_to_the_system_when_they_are_freed() -> None:
    if not hasattr(__import__("ctypes").CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")
    # A first large buffer raises the C library's own threshold; from then on it would keep freed ones.
    code = """
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)
libc.free(libc.malloc(16 << 20))
blocks = []
for _ in range(400):
    blocks.append(libc.malloc(100_000)); ctypes.memset(blocks[-1], 1, 100_000)
keep = [libc.malloc(90_000) for _ in range(50)]  # behind them: the heap cannot shrink over these
before = kb("Rss")
for block in blocks: libc.free(block)
print(before - kb("Rss"))
"""
    (kept,) = printed(code.format(first=""))
    (given,) = printed(code.format(first="give_memory_back()"))
    assert given > 30_000 > kept


def test_code_is_let_go_of_and_runs_on() -> None:
    before, after, answer = printed(
        "import hashlib, json, ssl, sqlite3, numpy\n"
        "before = kb('Pss_File'); let_go_of_code(); after = kb('Pss_File')\n"
        "print(before, after, int(numpy.arange(5) @ numpy.arange(5)), end='')\n"
        "assert hashlib.sha256(b'').hexdigest()[:4] == 'e3b0'"
    )
    assert answer == 30
    assert after < before
