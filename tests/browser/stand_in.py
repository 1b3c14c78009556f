"""A small server that speaks to the page as the daemon does, and says what a test tells it: for what a real daemon
cannot be made to say at a given moment (hostile texts, 20,000 captions, a lost connection)."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "runtime" / "captiond" / "page"
DEMO = ROOT / "runtime" / "demo" / "demo.avi"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
KEY = "a key of the tests"
PROMPT = {"id": "describe", "text": "Describe the image.", "kind": "text", "every_s": 0.0, "max_new_tokens": 96}


def demo_jpegs() -> list[bytes]:
    """The frames of the demo video as they stand in it: it is Motion JPEG in an AVI file."""
    content, found, place = DEMO.read_bytes(), [], 0
    place = content.index(b"movi") + 4
    while content[place : place + 4] == b"00dc":
        (size,) = struct.unpack_from("<I", content, place + 4)
        found.append(content[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    return found


def source_state(name: str, **changes: Any) -> dict[str, Any]:
    """A live source as /api/state tells of it."""
    state = {
        "name": name, "uri": f"rtsp://***@10.0.0.7/{name}", "status": "live", "cause": "", "message": "", "attempt": 0,
        "retry_in_s": None, "fps": 30.0, "frames": 12, "reconnects": 0, "frame_age_ms": 20.0, "width": 256,
        "height": 192, "paused": False, "prompts": [dict(PROMPT)], "prompt": "describe", "captions_per_s": 0.0,
        "caption": None, "live": None, "rules": [],
    }  # fmt: skip
    return {**state, **changes}


def engine_state(status: str = "ready", message: str = "", cause: str = "") -> dict[str, Any]:
    return {"type": "engine", "status": status, "cause": cause, "message": message, "restarts": 0, "load_s": 1.0}


class StandIn:
    """The server in a thread of its own. ``state`` is what /api/state says; a test changes it as it likes."""

    def __init__(self, sources: list[dict[str, Any]], port: int = 0, key: str | None = None) -> None:
        self.state: dict[str, Any] = {
            "version": "0.4.0", "model": "demo-llava", "engine": engine_state(), "sources": sources,
            "chats": {"running": 0, "waiting": 0}, "tokens_per_s": None, "ttft_ms": None,
            "may": ["read", "chat", "control"], "board": None,
        }  # fmt: skip
        self.history: dict[str, list[dict[str, Any]]] = {source["name"]: [] for source in sources}
        self.posts: list[tuple[str, Any]] = []
        self.refuse: dict[str, str] = {}  # path → error message of a POST to it
        self.requests: list[str] = []
        self.pictures = demo_jpegs()
        self.captions = 0
        self.key = key
        self.streams: set[asyncio.Queue[str | None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._do(self._start(port))

    # ---- what tests call

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        """Stop; a second time it does nothing."""
        if self._loop.is_closed():
            return
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def publish(self, *events: dict[str, Any]) -> None:
        """Send events to every page that listens."""
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self._do(self._publish(text))

    def started(self, source: str, seq: int | None = None, prompt: dict[str, Any] = PROMPT) -> dict[str, Any]:
        """The event with which the next caption begins."""
        self.captions += 1
        seq = self.captions if seq is None else seq
        frame = {
            "source": source, "seq": seq, "t_capture_ns": time.monotonic_ns(), "capture_unix": time.time(),
            "kind": "arrival", "width": 256, "height": 192,
        }  # fmt: skip
        return {
            "type": "caption_started", "caption": self.captions, "frame": frame, "prompt_id": prompt["id"],
            "prompt": prompt["text"],
        }  # fmt: skip

    def delta(self, begun: dict[str, Any], text: str, index: int) -> dict[str, Any]:
        source = begun["frame"]["source"]
        return {
            "type": "caption_delta", "caption": begun["caption"], "source": source, "text": text, "index": index,
            "t_ns": time.monotonic_ns(),
        }  # fmt: skip

    def finished(self, begun: dict[str, Any], text: str, **changes: Any) -> dict[str, Any]:
        """The event with which a caption ends; it is in the history from now on."""
        tokens = max(1, len(text.split()))
        event = {
            **begun, "type": "caption", "text": text, "fields": None, "finish_reason": "stop", "model": "demo-llava",
            "tokens": tokens, "age_first_ms": 84.0, "age_last_ms": 84.0 + 21 * tokens,
            "ttft_ms": 60.0 + begun["caption"] % 7, "tokens_per_s": 46.0 + begun["caption"] % 5, "skipped": 0,
            "timings_ms": {}, **changes,
        }  # fmt: skip
        kept = self.history[begun["frame"]["source"]]
        kept.insert(0, event)
        del kept[60:]
        for source in self.state["sources"]:
            if source["name"] == begun["frame"]["source"]:
                source["caption"] = event
        return event

    def caption(self, source: str, text: str, **changes: Any) -> None:
        """A whole caption, token by token, at once."""
        begun = self.started(source)
        words = [f"{word} " for word in text.split(" ")]
        deltas = [self.delta(begun, word, index) for index, word in enumerate(words)]
        self.publish(begun, *deltas, self.finished(begun, text, **changes))

    def wait_listeners(self, number: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until so many pages listen."""
        until = time.monotonic() + timeout_s
        while len(self.streams) < number:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self.streams)} of {number} pages listen after {timeout_s} s")
            time.sleep(0.02)

    # ---- the server

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self, port: int) -> int:
        app = web.Application(middlewares=[self._middleware])
        app.router.add_get("/", self._index)
        app.router.add_get("/page/{file}", self._file)
        app.router.add_get("/api/state", self._state)
        app.router.add_get("/events", self._events)
        app.router.add_post("/api/login", self._login)
        app.router.add_get("/api/sources/{name:[^/]+}/picture.jpg", self._picture)
        app.router.add_get("/api/sources/{name:[^/]+}/history", self._history)
        app.router.add_get("/api/sources/{name:[^/]+}/history/{caption}.jpg", self._captioned)
        app.router.add_post("/api/sources/{name:[^/]+}/{verb}", self._control)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        for queue in self.streams:
            queue.put_nowait(None)
        await self._runner.cleanup()
        for _ in range(10):  # connections that were accepted this instant are closed in a later turn of the loop
            await asyncio.sleep(0)

    async def _publish(self, text: str) -> None:
        for queue in self.streams:
            queue.put_nowait(text)

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        open_to_all = request.path == "/" or request.path.startswith("/page/") or request.path == "/api/login"
        if self.key and not open_to_all and request.cookies.get("session") != "a session":
            return _error(401, "This needs a key")
        return await handler(request)

    async def _index(self, request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": CSP, "Cache-Control": "no-cache"}
        return web.Response(body=(PAGE / "index.html").read_bytes(), content_type="text/html", headers=headers)

    async def _file(self, request: web.Request) -> web.Response:
        path = PAGE / Path(request.match_info["file"]).name
        if not path.is_file():
            return _error(404, "no such file")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=path.read_bytes(), content_type=TYPES[path.suffix], headers=headers)

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response({**self.state, "now_unix": time.time()})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        await response.write(b": here\n\n")
        self.streams.add(queue)
        try:
            while (text := await queue.get()) is not None:
                await response.write(text.encode())
        except ConnectionResetError:
            return response  # the page has gone
        finally:
            self.streams.discard(queue)
        return response

    async def _login(self, request: web.Request) -> web.Response:
        if (await request.json())["key"] != self.key:
            return _error(401, "The key is not known")
        answer = web.json_response({})
        answer.set_cookie("session", "a session", httponly=True, samesite="Strict")
        return answer

    async def _picture(self, request: web.Request) -> web.Response:
        seq = int(time.monotonic() * 12)
        return self._jpeg(seq, {"X-Frame-Seq": str(seq), "X-Frame-Age-Ms": "35"})

    def _jpeg(self, seq: int, headers: dict[str, str]) -> web.Response:
        picture = self.pictures[seq % len(self.pictures)]
        return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "no-store", **headers})

    async def _history(self, request: web.Request) -> web.Response:
        return web.json_response({"captions": self.history.get(request.match_info["name"], [])})

    async def _captioned(self, request: web.Request) -> web.Response:
        return self._jpeg(int(request.match_info["caption"]), {})

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.posts.append((request.path, body))
        if request.path in self.refuse:
            return _error(400, self.refuse[request.path])
        for source in self.state["sources"]:
            if source["name"] == request.match_info["name"]:
                self._change(source, request.match_info["verb"], body)
        return web.json_response({})

    def _change(self, source: dict[str, Any], verb: str, body: dict[str, Any]) -> None:
        if verb in ("pause", "resume"):
            source["paused"] = verb == "pause"
        else:
            source.update(body)


def _error(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "test", "param": None, "code": None}}, status=status
    )


def serving(*arguments: Any, **settings: Any) -> Iterator[StandIn]:
    """A stand-in for the length of a test."""
    server = StandIn(*arguments, **settings)
    yield server
    server.close()
