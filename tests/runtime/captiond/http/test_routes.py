"""State, health, pictures, history and the page: what they answer."""

from __future__ import annotations

import asyncio
import json

import pytest

from runtime.captiond.events import EngineChanged
from tests.runtime.captiond import sample_events as made
from tests.runtime.captiond.http.parts import ALL_KEYS, Pictures, Runner, bearer, client, serving, until


def test_the_state_tells_everything_that_a_page_shows_when_it_opens() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            publish = running.services.bus.publish
            for event in (
                made.source_changed(), made.finished(3), made.rule(), made.started(4),
                made.delta(4, 0, "a "), made.delta(4, 1, "dog"), made.delta(9, 2, "of another"),
            ):  # fmt: skip
                publish(event)
            async with session.get(running.url + "/api/state") as answer:
                state = await answer.json()
            assert (state["version"], state["model"], state["engine"]["status"]) == ("1.2.3", "demo-llava", "ready")
            assert state["chats"] == {"running": 3, "waiting": 1}
            assert (state["tokens_per_s"], state["ttft_ms"]) == (91.0, 60.0)
            assert state["may"] == ["chat", "control", "read"]
            (source,) = state["sources"]
            assert (source["name"], source["status"], source["fps"]) == ("door", "live", 29.97)
            assert (source["width"], source["height"], source["frame_age_ms"] > 0) == (640, 480, True)
            assert source["caption"]["caption"] == 3
            assert (source["live"]["caption"], source["live"]["text"], source["live"]["index"]) == (4, "a dog", 1)
            assert source["rules"] == [{"name": "dog", "active": True}]
            assert [prompt["id"] for prompt in source["prompts"]] == ["what", "dog"]
            publish(made.finished(4))
            async with session.get(running.url + "/api/state") as answer:
                (source,) = (await answer.json())["sources"]
            assert (source["caption"]["caption"], source["live"]) == (4, None)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "code"), [("loading", 503), ("ready", 200), ("restarting", 503), ("degraded", 503), ("stopped", 503)]
)
def test_health_is_that_of_the_engine_and_strangers_learn_no_more(status: str, code: int) -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS) as running, client() as session:
            running.services.engine.state = EngineChanged(status, "killed", "signal 9", 1, None)  # type: ignore[arg-type]
            async with session.get(running.url + "/health") as answer:
                assert answer.status == code
                stranger = await answer.json()
            assert set(stranger) == {"status", "reason"}
            assert bool(stranger["reason"]) == (code == 503)
            async with session.get(running.url + "/health", headers=bearer("read")) as answer:
                friend = await answer.json()
            assert friend["engine"]["status"] == status
            assert (friend["cause"], friend["message"]) == ("killed", "signal 9")
            assert (friend["sources"], friend["watchdog_margin_s"]) == ({"door": "connecting"}, 12.5)

    asyncio.run(main())


def test_a_picture_is_the_newest_frame_and_none_is_shown_without_a_signal() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            pictures, runner = running.services.pictures, running.services.sources["door"].runner
            assert isinstance(pictures, Pictures)
            assert isinstance(runner, Runner)
            url = running.url + "/api/sources/door/picture.jpg"
            async with session.get(url + "?side=320&overlay=1") as answer:
                assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
                assert answer.headers["X-Frame-Seq"] == "41"
                assert float(answer.headers["X-Frame-Age-Ms"]) > 0
                assert (await answer.read()).startswith(b"\xff\xd8")
            assert pictures.asked[-1] == ("door", 320, "")
            running.services.bus.publish(made.finished(1, "a dog"))
            async with session.get(url + "?overlay=1"):
                assert pictures.asked[-1] == ("door", 960, "a dog")
            for side in ("0", "-1", "63", "4097", "1e3", "x", "9" * 20, "１２８"):
                async with session.get(url, params={"side": side}) as answer:
                    assert answer.status == 400, side
            runner.header = None
            async with session.get(url) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "no_signal")

    asyncio.run(main())


def test_live_pictures_are_parts_of_which_each_is_one_frame_and_encoded_once_for_all() -> None:
    async def main() -> None:
        async with serving(picture_fps=60.0) as running, client() as session:
            pictures = running.services.pictures
            assert isinstance(pictures, Pictures)
            answers = [await session.get(running.url + "/api/sources/door/live.mjpg") for _ in range(3)]
            kind = answers[0].headers["Content-Type"]
            assert kind == "multipart/x-mixed-replace; boundary=frame"
            await until(lambda: len(running.server._pictures._live[("door", False)].viewers) == 3)
            seen = []
            for seq in (50, 51):
                pictures.seq = seq
                for answer in answers:
                    while True:
                        head = await answer.content.readuntil(b"\r\n\r\n")
                        fields = dict(line.split(b": ") for line in head.split(b"\r\n") if b": " in line)
                        body = await answer.content.readexactly(int(fields[b"Content-Length"]))
                        assert body.startswith(b"\xff\xd8")
                        assert await answer.content.readexactly(9) == b"\r\n--frame"
                        if int(fields[b"X-Frame-Seq"]) == seq:
                            seen.append(seq)
                            break
            assert seen == [50] * 3 + [51] * 3
            for answer in answers:
                answer.close()
            await until(lambda: not running.server._pictures._live)

    asyncio.run(main())


def test_the_history_is_newest_first_and_has_the_pictures_that_there_are() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            url = running.url + "/api/sources/door/history"
            async with session.get(url) as answer:
                captions = (await answer.json())["captions"]
            assert [(item["caption"], item["picture"], item["type"]) for item in captions] == [
                (2, False, "caption"),
                (1, True, "caption"),
            ]
            async with session.get(url + "/1.jpg?t=5") as answer:
                assert (answer.status, await answer.read()) == (200, b"\xff\xd8one")
                assert "private" in answer.headers["Cache-Control"]
            for number in ("2", "3", "x"):
                async with session.get(f"{url}/{number}.jpg") as answer:
                    assert answer.status == 404

    asyncio.run(main())


def test_the_page_is_served_with_types_that_browsers_run_and_is_not_sent_twice() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            async with session.get(running.url + "/") as answer:
                assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
                assert "http" not in (await answer.text()).split("<script")[1].split(">")[0]
                etag = answer.headers["ETag"]
            async with session.get(running.url + "/", headers={"If-None-Match": etag}) as answer:
                assert (answer.status, await answer.read()) == (304, b"")
            async with session.get(running.url + "/page/api.js") as answer:
                assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"

    asyncio.run(main())


def test_the_credentials_of_a_source_are_not_shown() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            view = running.services.sources["door"]
            object.__setattr__(view.settings, "uri", "rtsp://admin:hunter2@cam/1")
            try:
                for path in ("/api/state", "/metrics", "/health"):
                    async with session.get(running.url + path) as answer:
                        assert "hunter2" not in await answer.text()
            finally:
                object.__setattr__(view.settings, "uri", "rtsp://cam.lan/1")
            assert json.dumps(view.settings.uri) == '"rtsp://cam.lan/1"'

    asyncio.run(main())
