"""The daemon as a service: messages to a real notify socket, a watchdog that follows progress, one instance."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.service.lock import InstanceLock, run_directory
from runtime.captiond.service.notify import Notifier
from runtime.captiond.service.watchdog import Watchdog
from runtime.errors import ConfigError
from tests.runtime.captiond.clocks import ManualClock


class Manager:
    """A service manager's socket: what systemd would have received."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def received(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_arrive_as_sd_notify_has_them(tmp_path: Path, abstract: bool) -> None:
    address = f"@vlm-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    manager = Manager(address)
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"})
    notifier.status("loading\nREADY=1", extend_s=30)
    notifier.ready("3 sources")
    notifier.alive()
    notifier.reloading(5_000_000)
    notifier.stopping()
    assert manager.received() == [
        "STATUS=loading READY=1\nEXTEND_TIMEOUT_USEC=30000000",
        "READY=1\nSTATUS=3 sources",
        "WATCHDOG=1",
        "RELOADING=1\nMONOTONIC_USEC=5000",
        "STOPPING=1",
    ]
    assert notifier.watchdog_s == 20.0
    manager.close()


def test_without_a_manager_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    silent = Notifier({})
    silent.ready("x")
    assert silent.watchdog_s is None
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


@pytest.mark.parametrize(
    "environment",
    [
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "many"},
    ],
)
def test_watchdog_of_another_process_or_of_no_meaning_is_none(environment: dict[str, str]) -> None:
    assert Notifier(environment).watchdog_s is None


def test_watchdog_pings_while_every_loop_moves_and_stops_when_one_hangs(tmp_path: Path) -> None:
    async def run() -> None:
        manager = Manager(str(tmp_path / "notify"))
        clock = ManualClock()
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000000"})
        progress = [clock.now_ns(), clock.now_ns()]
        watchdog = Watchdog(notifier, lambda: progress, clock)
        task = asyncio.create_task(watchdog.run())
        for _ in range(8):
            progress[:] = [clock.now_ns()] * 2
            await clock.advance(5)
        assert len(manager.received()) >= 8
        for _ in range(3):
            progress[0] = clock.now_ns()  # the other one hangs
            await clock.advance(5)
        manager.received()
        assert watchdog.margin_s() <= 0
        for _ in range(4):
            progress[0] = clock.now_ns()
            await clock.advance(5)
        assert manager.received() == []
        progress[:] = [clock.now_ns()] * 2
        assert watchdog.margin_s() == 20.0
        await clock.advance(5)
        assert manager.received() == ["WATCHDOG=1"]
        task.cancel()
        manager.close()

    asyncio.run(run())


def test_watchdog_without_loops_has_its_whole_margin() -> None:
    clock = ManualClock(7 * NS_PER_S)
    assert Watchdog(Notifier({}), list, clock).margin_s() == 90.0


def test_second_instance_is_refused_with_the_pid_of_the_first_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lock = InstanceLock(folder)
    with pytest.raises(ConfigError, match=rf"another vlm-captiond \(pid {os.getpid()}\)"):
        InstanceLock(folder)
    lock.release()
    lock.release()
    code = (
        "import sys, pathlib; from runtime.captiond.service.lock import InstanceLock;"
        "lock = InstanceLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"pid {other.pid}"):
            InstanceLock(folder)
        other.kill()
        other.wait()
    InstanceLock(folder).release()


def test_lock_of_another_user_or_through_a_link_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="not a folder of this user"):
        InstanceLock(tmp_path / "link")
    (target / "vlm-captiond.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be made"):
        InstanceLock(target)


def test_run_directory_is_the_setting_then_systemds_then_the_users_own() -> None:
    assert run_directory("/run/a", {"RUNTIME_DIRECTORY": "/run/b"}) == Path("/run/a")
    assert run_directory(None, {"RUNTIME_DIRECTORY": "/run/b:/run/c"}) == Path("/run/b")
    assert run_directory(None, {}).name == f"vlm-captiond-{os.getuid()}"
