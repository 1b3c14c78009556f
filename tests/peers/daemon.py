"""The daemon as a process of its own: started from a configuration, watched through its HTTP interface and its log.

with RunningDaemon(tmp_path, bundle=DEMO_BUNDLE, sources=[{"name": "a", "uri": "film.avi", "loop": True}]) as daemon:
    daemon.wait_event("caption")
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.imports import ROOT

DEMO_BUNDLE = ROOT / "runtime" / "demo" / "demo-llava"
DEMO_VIDEO = ROOT / "runtime" / "demo" / "demo.avi"
LIMIT_S = 60.0


class RunningDaemon:
    """``python -m runtime.captiond`` with a configuration in ``folder``. ``settings``: further tables, as JSON values.

    ``environment`` is added to that of this process, ``command`` gets the file as its last argument. On leaving it is
    terminated, and killed if that takes too long.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Mapping[str, object]] = (),
        *,
        bundle: Path = DEMO_BUNDLE,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "runtime.captiond"),
    ) -> None:
        self.config = folder / "captiond.toml"
        self._tables = {
            "run_dir": str(folder / "run"),
            "engine": {"bundle": str(bundle)},
            "server": {"port": 0},
            "source": list(sources),
            **(settings or {}),
        }
        self.write(self._tables)
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
        self._command = (*command, str(self.config))
        self.url = ""
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()

    def write(self, tables: Mapping[str, object] | str) -> None:
        """Write the configuration file; takes effect at the next start or SIGHUP."""
        self.config.write_text(tables if isinstance(tables, str) else toml(tables), encoding="utf-8")

    def change(self, **tables: object) -> None:
        """Replace whole tables of the configuration file."""
        self._tables = {**self._tables, **tables}
        self.write(self._tables)

    def __enter__(self) -> RunningDaemon:
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self.wait_log(r"listening on (\S+)/")[1]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def get(self, path: str) -> Any:
        """The JSON that a route answers, whatever its status."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=LIMIT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return json.load(refused)

    def post(self, path: str, body: object) -> Any:
        """The JSON that a route answers to a POST of JSON."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return json.load(answer)

    def wait(self, condition: Callable[[Any], bool], path: str = "/api/state") -> Any:
        """Ask a route until ``condition`` holds for its answer; returns that answer."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if condition(answer := self.get(path)):
                return answer
            time.sleep(0.05)
        raise AssertionError(f"{path} is still {answer}\n" + "\n".join(self.log[-20:]))

    def source(self, state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """One source of ``/api/state``; an empty mapping when there is none of that name."""
        return next((entry for entry in state["sources"] if entry["name"] == name), {})

    def wait_caption(self, name: str, after: int = 0) -> Mapping[str, Any]:
        """The newest caption of a source once it is numbered above ``after``."""

        def newer(state: Any) -> bool:
            caption = self.source(state, name).get("caption")
            return caption is not None and caption["caption"] > after

        caption: Mapping[str, Any] = self.source(self.wait(newer), name)["caption"]
        return caption

    def wait_log(self, pattern: str) -> re.Match[str]:
        """The first line of the log, from the last that was waited for on, that matches."""
        end = time.monotonic() + LIMIT_S
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                break
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no line of the log matches {pattern!r}:\n" + "\n".join(self.log))

    def children(self) -> set[int]:
        """Process ids of everything below the daemon."""
        return descendants(self.process.pid)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            self._lines.put(self.log[-1])
        self._lines.put(None)


def descendants(pid: int) -> set[int]:
    """Process ids of all children of a process, and theirs."""
    try:
        own = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return own.union(*(descendants(child) for child in own)) if own else own


def toml(tables: Mapping[str, object]) -> str:
    """TOML of JSON values: what TOML writes as tables is written inline."""
    return "".join(f"{key} = {_inline(value)}\n" for key, value in tables.items())


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_inline(entry) for entry in value) + "]"
    return json.dumps(value)
