"""The daemon: its parts put together, started, told of new settings, and stopped.

    daemon = Daemon(config, reread, os.environ, redactor)
    status = asyncio.run(daemon.run())

`runtime.captiond.command` does this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from runtime.captiond.board import board_telemetry
from runtime.captiond.bus import Bus
from runtime.captiond.capture.launcher import Launcher
from runtime.captiond.clock import Clock
from runtime.captiond.config import Config, read_secret, reloadable, secret_files
from runtime.captiond.engine.client import EngineClient
from runtime.captiond.events import Notice
from runtime.captiond.frugal import let_go_of_code
from runtime.captiond.http.server import HttpServer
from runtime.captiond.http.services import About, Services
from runtime.captiond.journal import Journal
from runtime.captiond.keeper import Keeper
from runtime.captiond.metrics import Metrics
from runtime.captiond.outputs import Output, build
from runtime.captiond.pictures.client import Pictures
from runtime.captiond.redaction import Redactor
from runtime.captiond.service.lock import InstanceLock, run_directory
from runtime.captiond.service.notify import Notifier
from runtime.captiond.service.watchdog import Watchdog
from runtime.captiond.watched import Sources
from runtime.errors import BundleError, ConfigError, UsageError, VlmError
from runtime.version import __version__

_log = logging.getLogger(__name__)
_STOP_S = 2.5
_KILL_S = 0.3  # for the processes that are still there then
_OUTPUT_STOP_S = 1.0
_SERVER_STOP_S = 1.0
_EXTEND_S = 30.0


class Daemon:
    """One running daemon. ``reread`` gives the configuration anew at SIGHUP; ``environment`` is that of the process."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        environment: Mapping[str, str],
        redactor: Redactor,
        *,
        clock: Clock | None = None,
        engine_command: Sequence[str] | None = None,
    ) -> None:
        self._config = config
        self._reread = reread
        self._clock = clock or Clock()
        self._run_dir = run_directory(config.run_dir, environment)
        self._redactor = redactor
        self._host = config.host_name or host_name()
        self._notifier = Notifier(environment)
        self._stopping = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._failure: VlmError | None = None
        self.bus = Bus()
        self.bus.tap(Journal(self._clock).note)
        self._keeper = Keeper(self.bus.publish, self._clock)
        self._launcher = Launcher()
        command = {} if engine_command is None else {"command": engine_command}
        slots = max(1, len(config.sources))
        self._engine = EngineClient(config.engine, slots, self.bus.publish, self._clock, **command)
        self._pictures = Pictures(
            self._launcher,
            self._clock,
            max_bytes=config.server.max_image_bytes,
            max_pixels=config.server.max_image_pixels,
        )
        self.sources = Sources(self.bus, self._engine, self._pictures, self._launcher, self._keeper, self._clock)
        self._watchdog = Watchdog(self._notifier, self.sources.progress, self._clock)
        self._outputs: dict[str, Output] = {}
        self._server: HttpServer | None = None

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code. Raises VlmError when it cannot start."""
        lock = InstanceLock(self._run_dir)
        try:
            self._handle_signals()
            await self._start()
            await self._stopping.wait()
        finally:
            await self._stop()
            lock.release()
        if self._failure is not None:
            raise self._failure
        return 0

    async def _start(self) -> None:
        """Everything that answers comes first; the engine loads meanwhile."""
        self._notifier.status("starting", extend_s=_EXTEND_S)
        await self._launcher.start()
        if self._config.server.enabled:
            await self._serve()
        self._begin_outputs()
        self._keeper.keep("engine", self._engine.run)
        await self.sources.apply(self._config.sources)
        self._tell_secrets()
        self._keeper.keep("watchdog", self._watchdog.run)
        self._keeper.keep("readiness", self._say_ready)
        self._keeper.keep("reload", self._reload_on_demand)

    async def _serve(self) -> None:
        services = Services(
            bus=self.bus,
            engine=self._engine,
            sources=self.sources,
            pictures=self._pictures,
            metrics=Metrics(),
            server=self._config.server,
            about=About(__version__, self._host, self._clock.now_ns()),
            clock=self._clock,
            watchdog_margin_s=self._watchdog.margin_s,
            processes=self._processes,
            outputs=self._outputs,
            board=board_telemetry(self._clock),
        )
        self._server = HttpServer(self._config.server, services, self._clock)
        address = await self._server.start()
        _log.info("listening on %s", address)

    async def _say_ready(self) -> None:
        """Extend the start while the model loads; a bundle that cannot be used ends the daemon."""
        loading = asyncio.ensure_future(self._engine.first_load())
        try:
            while not loading.done():
                self._notifier.status(self._engine.state.message, extend_s=_EXTEND_S)
                await asyncio.wait([loading], timeout=_EXTEND_S / 3)
            loading.result()
        except (BundleError, ConfigError, UsageError) as error:
            self._failure = error
            self._stopping.set()
            return
        except VlmError as error:  # memory, a device: the engine goes on trying, and says so in its state
            _log.error("the engine does not load: %s", error)
            await self._engine.wait_answering()
        finally:
            loading.cancel()
        let_go_of_code()
        self._notifier.ready(f"watching {len(self.sources)} sources with {self._engine.model}")

    def _begin_outputs(self) -> None:
        config = self._config
        made = build(config.output, self._host, self.bus, self._clock, config.server.private_targets, config.sources)
        for output in made:
            self._outputs[output.name] = output
            self._keeper.keep(f"output {output.name}", output.run)

    async def _end_outputs(self) -> None:
        outputs = list(self._outputs.values())
        self._outputs.clear()
        await asyncio.gather(*(output.close(_OUTPUT_STOP_S) for output in outputs), return_exceptions=True)
        for output in outputs:
            await self._keeper.stop(f"output {output.name}")

    # ---- new settings

    async def _reload_on_demand(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            if not self._engine.answering:  # systemd would take the end of a reload for the end of the start
                await self._reload()
                continue
            self._notifier.reloading(self._clock.now_ns())
            await self._reload()
            self._notifier.ready(f"watching {len(self.sources)} sources with {self._engine.model}")

    async def _reload(self) -> None:
        """Take the settings as they are on disk now; with a mistake in them the old ones stay."""
        before = self._config
        try:
            wanted, kept = reloadable(before, self._reread())
            if self._server is not None:
                self._server.reload(wanted.server)
        except VlmError as error:
            _log.error("the configuration stays as it was: %s", error)
            self.bus.publish(Notice("error", "configuration", f"the old one stays: {error.message}"))
            return
        self._config = wanted
        self._engine.reload(wanted.engine)
        logging.getLogger("runtime").setLevel(wanted.log.level.upper())
        if self._config.output != before.output or self._config.server != before.server:
            await self._end_outputs()
            self._begin_outputs()
        for output in self._outputs.values():
            output.watch(self._config.sources)
        await self.sources.apply(self._config.sources)
        self._tell_secrets()
        text = "taken" if not kept else f"taken, but a restart is needed for {', '.join(kept)}"
        _log.info("the new configuration is %s", text)
        self.bus.publish(Notice("warning" if kept else "info", "configuration", f"the new one is {text}"))

    def _tell_secrets(self) -> None:
        """Let the log know what must not stand in it; a file that cannot be read is told of by whoever needs it."""
        for file in secret_files(self._config):
            with suppress(ConfigError):
                self._redactor.add(read_secret(file))

    # ---- signals and the end

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)

    def _on_stop(self, number: int) -> None:
        """The first signal stops in order; the second at once."""
        if self._stopping.is_set():
            os._exit(128 + number)
        self._stopping.set()

    async def _stop(self) -> None:
        """In the order in which each part still has what it needs; within three seconds."""
        self._notifier.stopping()
        for part, seconds in ((self._stop_parts(), _STOP_S), (self._launcher.close(), _KILL_S)):
            try:
                await asyncio.wait_for(part, seconds)
            except asyncio.TimeoutError:
                _log.warning("not everything stopped within %g s", seconds)

    async def _stop_parts(self) -> None:
        await self._keeper.stop("reload")
        await self._keeper.stop("readiness")
        await self.sources.close()
        await self._keeper.stop("engine")
        await self._end_outputs()
        if self._server is not None:
            await self._server.stop(_SERVER_STOP_S)
        await self._keeper.close()
        await self._pictures.close()
        await self._launcher.close()

    def _processes(self) -> Mapping[str, Iterable[int]]:
        """Process ids by kind."""
        engine = self._engine.pid
        return {"main": [os.getpid()], "engine": [] if engine is None else [engine], **self._launcher.processes()}


def host_name() -> str:
    """This machine's name as topics and labels can have it."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-_")
    return name[:64] or "host"
