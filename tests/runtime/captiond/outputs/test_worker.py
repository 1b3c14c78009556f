"""A thread for calls that may hang: results, errors, order, and that it keeps nobody."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.captiond.outputs.worker import Worker

ROOT = Path(__file__).resolve().parents[4]


def test_results_and_errors_come_back_in_order_from_another_thread() -> None:
    async def main() -> None:
        worker = Worker("test")
        threads: list[str] = []

        def fail() -> None:
            raise OSError("no")

        assert await worker.run(lambda: threads.append(threading.current_thread().name) or 7) == 7
        with pytest.raises(OSError, match="no"):
            await worker.run(fail)
        assert threads == ["test"]
        worker.close()

    asyncio.run(main())


def test_a_call_that_hangs_can_be_left_and_later_ones_wait_for_it() -> None:
    async def main() -> None:
        worker, free, done = Worker("test"), threading.Event(), []
        left = asyncio.ensure_future(worker.run(lambda: done.append(free.wait())))
        await asyncio.sleep(0)
        left.cancel()
        later = asyncio.ensure_future(worker.run(lambda: done.append("later")))
        await asyncio.wait({left})
        assert left.cancelled() and not later.done()
        free.set()
        await later
        assert done == [True, "later"]
        worker.close()

    asyncio.run(main())


def test_a_process_ends_though_a_call_hangs() -> None:
    script = (
        "import asyncio, os, threading; from runtime.captiond.outputs.worker import Worker\n"
        "async def main():\n"
        "    task = asyncio.ensure_future(Worker('stuck').run(threading.Event().wait))\n"
        "    await asyncio.sleep(0.05); task.cancel()\n"
        "asyncio.run(main())"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=30).returncode == 0
