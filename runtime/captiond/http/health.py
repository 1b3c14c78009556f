"""GET /health for load balancers and watchers of services, GET /metrics for Prometheus."""

from __future__ import annotations

import asyncio

from aiohttp import web

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.exposition import Exposition
from runtime.captiond.http.gate import who_of
from runtime.captiond.http.json_answer import json_answer
from runtime.captiond.http.latest import Latest
from runtime.captiond.http.route import Route
from runtime.captiond.http.services import Services
from runtime.captiond.process_memory import memory_of

# Proportional memory costs the kernel a walk over every page; a scrape every few seconds gets the same figures.
MEMORY_EVERY_S = 10.0


class Health:
    """Both routes."""

    def __init__(self, services: Services, latest: Latest, exposition: Exposition) -> None:
        self._services, self._latest, self._exposition = services, latest, exposition
        self._measured_ns: int | None = None

    def routes(self) -> list[Route]:
        """/health is answered to anyone; names and causes only to those who may read."""
        return [
            Route("GET", "/health", self._health, ("anyone",)),
            Route("GET", "/metrics", self._metrics, ("read",)),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        """200 while the engine answers, 503 with the reason otherwise. Sources that are away do not make it ill: the
        daemon does what can be done about them."""
        state = self._services.engine.state
        healthy = state.status == "ready"
        body: dict[str, object] = {"status": "ok" if healthy else "unavailable", "reason": _reason(state.status)}
        if "read" in who_of(request).may:
            body |= {
                "cause": state.cause,
                "message": state.message,
                "engine": {"status": state.status, "restarts": state.restarts, "model": self._services.engine.model},
                "sources": {name: self._latest.source_status(name) for name in self._services.sources},
                "watchdog_margin_s": self._services.watchdog_margin_s(),
                "version": self._services.about.version,
            }
        headers = {} if healthy else {"Retry-After": "1"}
        return json_answer(body, status=200 if healthy else 503, headers=headers)

    async def _metrics(self, request: web.Request) -> web.Response:
        now_ns = self._services.clock.now_ns()
        if self._measured_ns is None or now_ns - self._measured_ns >= MEMORY_EVERY_S * NS_PER_S:
            self._measured_ns = now_ns
            processes = {kind: tuple(pids) for kind, pids in self._services.processes().items()}
            loop = asyncio.get_running_loop()
            self._exposition.memory = await loop.run_in_executor(None, memory_of, processes)
        body, content_type = self._exposition.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _reason(status: str) -> str:
    return {"ready": "", "loading": "the model is loading", "restarting": "the engine is restarting"}.get(
        status, f"the engine is {status}"
    )
