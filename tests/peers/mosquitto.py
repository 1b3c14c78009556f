"""A real MQTT broker, and a real client that listens to it: Debian's mosquitto and mosquitto_sub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.certificates import Certificates

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Heard:
    """A message as mosquitto_sub printed it. ``retained``: it was sent because the broker remembered it."""

    topic: str
    payload: str
    retained: bool


class Mosquitto:
    """A broker on a free port of loopback; it can be stopped, killed, paused and started again on the same port.

    ``users``: name and password; without any everybody may do everything. ``acl``: lines of an access control list.
    With ``certificates`` it speaks TLS alone, with ``client_certificates`` to known clients alone. It remembers
    retained messages over a restart.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: dict[str, str] | None = None,
        acl: Sequence[str] = (),
        certificates: Certificates | None = None,
        client_certificates: bool = False,
    ) -> None:
        for program in ("mosquitto", "mosquitto_sub", "mosquitto_passwd"):
            if shutil.which(program) is None and not Path(f"/usr/sbin/{program}").exists():
                pytest.skip(f"needs {program} (Debian: mosquitto, mosquitto-clients)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.folder = folder
        self.certificates = certificates
        self._users = dict(users or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._write_settings(acl, client_certificates)

    def start(self) -> Mosquitto:
        """Start it and wait until it accepts connections."""
        assert self._process is None
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=subprocess.STDOUT
            )
        wait_for(self._accepts)
        return self

    def stop(self) -> None:
        """Let it end in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It does not answer, though its connections stay: half-open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Mosquitto:
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self.kill()

    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "mosquitto.log").read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def listener(self, *topics: str, user: str | None = None) -> Iterator[Listener]:
        """A client that hears ``topics``; it has subscribed when this begins."""
        # Line by line, though it writes into a pipe.
        arguments = [
            "stdbuf",
            "-oL",
            "mosquitto_sub",
            "-d",
            "-h",
            "localhost",
            "-p",
            str(self.port),
            "-F",
            "%j",
            "-q",
            "1",
        ]
        for topic in topics:
            arguments += ["-t", topic]
        if user is not None:
            arguments += ["-u", user, "-P", self._users[user]]
        if self.certificates is not None:
            arguments += ["--cafile", str(self.certificates.authority)]
            arguments += ["--cert", str(self.certificates.client), "--key", str(self.certificates.client_key)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        listener = Listener(process)
        try:
            wait_for(lambda: listener.subscribed)
            yield listener
        finally:
            listener.close()

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait()
        self._process = None

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _write_settings(self, acl: Sequence[str], client_certificates: bool) -> None:
        folder = self.folder
        lines = [
            "user root" if os.getuid() == 0 else "",
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if self._users else 'true'}",
            "persistence true", "autosave_on_changes true", "autosave_interval 1", f"persistence_location {folder}/",
        ]  # fmt: skip
        if self._users:
            (folder / "passwords").touch()
            for name, password in self._users.items():
                command = ["mosquitto_passwd", "-b", str(folder / "passwords"), name, password]
                subprocess.run(command, check=True, capture_output=True)
            lines.append(f"password_file {folder}/passwords")
        if acl:
            (folder / "acl").write_text("\n".join([*acl, ""]), encoding="ascii")
            lines.append(f"acl_file {folder}/acl")
        if self.certificates is not None:
            given = self.certificates
            lines += [f"cafile {given.authority}", f"certfile {given.server}", f"keyfile {given.server_key}"]
            lines += ["require_certificate true"] if client_certificates else []
        (folder / "mosquitto.conf").write_text("\n".join([*lines, ""]), encoding="ascii")


class Listener:
    """What a subscriber has heard so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.heard: list[Heard] = []
        self.subscribed = False
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def payloads(self, topic: str) -> list[str]:
        """What came on one topic, in order."""
        return [one.payload for one in list(self.heard) if one.topic == topic]

    def last(self, topic: str) -> str | None:
        """The newest of a topic."""
        return (self.payloads(topic) or [None])[-1]

    def close(self) -> None:
        """Stop listening."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                self.heard.append(Heard(said["topic"], said["payload"] or "", bool(said["retain"])))
            elif line.startswith("Subscribed"):
                self.subscribed = True


def wait_for(true: Callable[[], object], what: str = "the condition") -> None:
    """Wait until ``true()``; the test fails after half a minute."""
    end = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)
