"""GET /api/state: everything that the page shows when it opens."""

from __future__ import annotations

from dataclasses import fields

from aiohttp import web

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.config import PromptSettings
from runtime.captiond.events import as_json
from runtime.captiond.http.gate import who_of
from runtime.captiond.http.json_answer import json_answer
from runtime.captiond.http.latest import Latest, LiveCaption
from runtime.captiond.http.pictures import age_ms
from runtime.captiond.http.route import Route
from runtime.captiond.http.services import Services, SourceView
from runtime.captiond.text import redacted

# Names of files of this machine are nobody's business, and cannot be sent back either.
_PROMPT_KEYS = tuple(item.name for item in fields(PromptSettings) if item.name != "schema_file")


class State:
    """Puts the answer together from what the daemon's parts know."""

    def __init__(self, services: Services, latest: Latest) -> None:
        self._services, self._latest = services, latest

    def routes(self) -> list[Route]:
        """Its declaration."""
        return [Route("GET", "/api/state", self._state, ("read",))]

    async def _state(self, request: web.Request) -> web.Response:
        services = self._services
        stats = services.engine.stats
        board = services.board()
        body = {
            "version": services.about.version,
            "host": services.about.host,
            "model": services.engine.model,
            "engine": as_json(services.engine.state),
            "sources": [self._source(view) for view in services.sources.values()],
            "chats": {"running": stats.running, "waiting": stats.waiting},
            "tokens_per_s": self._latest.tokens_per_s,
            "ttft_ms": self._latest.ttft_ms,
            "may": sorted(who_of(request).may),
            "board": None if board is None else dict(board),
            "now_unix": services.clock.wall_ns() / NS_PER_S,
        }
        return json_answer(body)

    def _source(self, view: SourceView) -> dict[str, object]:
        name, stats, captioner = view.settings.name, view.runner.stats, view.captioner
        news, newest = self._latest.of(name), view.runner.newest()
        changed = news.changed
        rules = {rule.name: news.rules.get(rule.name, False) for rule in view.settings.rules}
        return {
            "name": name,
            "uri": redacted(view.settings.uri),
            "status": self._latest.source_status(name),
            "cause": "" if changed is None else changed.cause,
            "message": "" if changed is None else changed.message,
            "attempt": 0 if changed is None else changed.attempt,
            "retry_in_s": None if changed is None else changed.retry_in_s,
            "fps": round(stats.fps, 2),
            "frames": stats.frames,
            "reconnects": stats.reconnects,
            "stalls": stats.stalls,
            "frame_age_ms": None if newest is None else age_ms(self._services.clock.now_ns(), newest.t_capture_ns),
            "width": None if newest is None else newest.width,
            "height": None if newest is None else newest.height,
            "paused": captioner.paused,
            "prompts": [{key: getattr(prompt, key) for key in _PROMPT_KEYS} for prompt in captioner.prompts],
            "prompt": captioner.prompt_id,
            "captions_per_s": captioner.captions_per_s,
            "caption": None if news.caption is None else as_json(news.caption),
            "live": _live(news.live),
            "rules": [{"name": rule, "active": active} for rule, active in rules.items()],
        }


def _live(live: LiveCaption | None) -> dict[str, object] | None:
    if live is None:
        return None
    begun = as_json(live.started)
    return {"caption": live.started.caption, "text": live.text, "index": live.index} | {
        key: begun[key] for key in ("frame", "prompt_id", "prompt")
    }
