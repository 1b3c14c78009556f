"""The MQTT output against a real mosquitto, heard by mosquitto_sub: TLS, passwords, rights, and a broker in trouble."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import MqttSettings, RuleSettings, SourceSettings
from runtime.captiond.outputs.mqtt import Mqtt
from tests.peers.certificates import Certificates, make_certificates
from tests.peers.mosquitto import Mosquitto, wait_for
from tests.runtime.captiond.outputs.running import eventually, notices, running
from tests.runtime.captiond.sample_events import engine_changed, finished, rule, source_changed

ROOT = Path(__file__).resolve().parents[4]
RULE = RuleSettings(name="dog", prompt="dog", value="yes")
DOOR = SourceSettings(name="door", uri="file.mp4", rules=(RULE,))
YARD = SourceSettings(name="yard", uri="file.mp4")
CAPTION = "vlm/box/door/caption"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def output(bus: Bus, port: int, sources: tuple[SourceSettings, ...] = (DOOR,), **settings: Any) -> Mqtt:
    given = {"host": "localhost", "port": port, "keepalive_s": 5} | settings
    return Mqtt(MqttSettings(**given), "box", bus, Clock(), sources)


def test_tls_password_and_rights_let_captions_states_and_rules_through(
    tmp_path: Path, certificates: Certificates
) -> None:
    secret = tmp_path / "password"
    secret.write_text("pass word ü\n", encoding="utf-8")
    acl = ("user daemon", "topic readwrite vlm/box/#", "topic readwrite homeassistant/#", "user reader", "topic read #")
    users = {"daemon": "pass word ü", "reader": "r"}
    broker = Mosquitto(tmp_path, users=users, acl=acl, certificates=certificates, client_certificates=True)

    async def main() -> None:
        bus = Bus()
        one = output(
            bus, broker.port, user="daemon", password_file=str(secret), ca_file=str(certificates.authority),
            certificate_file=str(certificates.client), private_key_file=str(certificates.client_key),
        )  # fmt: skip
        async with running(one):
            bus.publish(source_changed())
            bus.publish(engine_changed())
            await eventually(lambda: heard.last("vlm/box/door/state") == "live")
            bus.publish(finished(1, "a red \x1b[31mball"))
            bus.publish(rule())
            await eventually(lambda: heard.last("vlm/box/door/rule/dog") == "ON")
        assert (one.delivered, one.dropped, one.errors) == (2, 0, 0)

    with broker, broker.listener("#", user="reader") as heard:
        asyncio.run(main())
        wait_for(lambda: heard.last("vlm/box/status") == "offline")
    assert heard.payloads(CAPTION) == ["a red [31mball"]
    assert json.loads(heard.payloads(f"{CAPTION}/json")[0])["text"] == "a red [31mball"
    assert heard.payloads("vlm/box/door/rule/dog") == ["OFF", "ON"]
    assert heard.payloads("vlm/box/status") == ["online", "offline"]
    assert heard.last("vlm/box/engine") == "ready"


def test_a_later_subscriber_is_told_how_things_stand(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus()
        one = output(bus, broker.port)
        async with running(one):
            bus.publish(finished(1))
            await eventually(lambda: one.delivered == 1)

    with Mosquitto(tmp_path) as broker:
        asyncio.run(main())
        with broker.listener("#") as heard:
            wait_for(lambda: heard.last(CAPTION) == "a red ball" and heard.last("vlm/box/status") == "offline")
            assert all(one.retained for one in heard.heard)
            assert (
                json.loads(heard.last("homeassistant/sensor/vlm_box/door_caption/config") or "{}")["name"] == "Caption"
            )


def test_what_is_watched_no_more_is_taken_back_also_after_a_restart(tmp_path: Path) -> None:
    async def first() -> None:
        bus = Bus()
        async with running(output(bus, broker.port, (DOOR, YARD))) as task:
            bus.publish(source_changed())
            bus.publish(finished(1))
            await eventually(lambda: heard.last(CAPTION) == "a red ball")
            assert not task.done()

    async def second() -> None:
        bus = Bus()
        one = output(bus, broker.port, (DOOR,))
        async with running(one):
            bus.publish(finished(2, "a box"))
            await eventually(lambda: heard.last(yard) == "", "the former entity's removal")
            one.watch(())
            await eventually(lambda: heard.last(CAPTION) == "" and heard.last(door) == "")
            bus.publish(source_changed("ended"))  # its last words come too late

    yard, door = (f"homeassistant/sensor/vlm_box/{name}_caption/config" for name in ("yard", "door"))
    with Mosquitto(tmp_path) as broker:
        with broker.listener("#") as heard:
            asyncio.run(first())
            assert heard.last(yard)
            asyncio.run(second())
        with broker.listener("#") as later:
            wait_for(lambda: later.last("vlm/box/status"))
            assert {one.topic for one in later.heard if "door" in one.topic or "yard" in one.topic} == set()


def test_a_broker_that_comes_later_or_again_learns_the_newest_state(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        one = output(bus, broker.port)
        async with running(one):
            await eventually(lambda: one.state == "trouble")
            for number in range(300):
                bus.publish(finished(number, f"caption {number}"))
            await eventually(lambda: one.subscription.waiting == 0)
            with broker, broker.listener(CAPTION) as heard:
                await eventually(lambda: heard.last(CAPTION) == "caption 299")
                assert one.state == "working"
            assert one.dropped == 299
            await eventually(lambda: one.state == "trouble")
            bus.publish(finished(300, "caption 300"))
            with broker, broker.listener(CAPTION) as heard:
                await eventually(lambda: heard.last(CAPTION) == "caption 300")
        assert [notice.level for notice in told] == ["warning", "info"] * 2
        assert all(f"localhost:{broker.port}" in notice.message for notice in told)

    broker = Mosquitto(tmp_path)
    asyncio.run(main())


def test_another_authority_is_refused_and_no_password_is_sent_to_it(tmp_path: Path, certificates: Certificates) -> None:
    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        one = output(bus, broker.port, ca_file=str(certificates.stranger))
        async with running(one):
            await eventually(lambda: one.errors >= 2)
        assert one.delivered == 0
        assert len(told) == 1
        assert "certificate is not trusted" in told[0].message

    with Mosquitto(tmp_path, certificates=certificates) as broker:
        asyncio.run(main())
        assert "CONNECT" not in broker.log()


def test_a_wrong_password_is_told_once_and_tried_again_until_it_is_right(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("wrong", encoding="utf-8")

    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        one = output(bus, broker.port, user="daemon", password_file=str(secret))
        async with running(one):
            await eventually(lambda: one.errors >= 2)
            assert len(told) == 1
            assert "Not authorized" in told[0].message and "wrong" not in told[0].message
            secret.write_text("right", encoding="utf-8")
            await eventually(lambda: one.state == "working")

    with Mosquitto(tmp_path, users={"daemon": "right"}) as broker:
        asyncio.run(main())


def test_a_missing_password_file_is_trouble_and_not_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus()
        one = output(bus, 1, user="daemon", password_file=str(tmp_path / "nothing"))
        async with running(one) as task:
            await eventually(lambda: one.errors >= 1)
            assert not task.done()

    asyncio.run(main())


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_answers_nothing_holds_up_nobody_and_nothing_grows(tmp_path: Path, qos: int) -> None:
    async def main() -> None:
        bus = Bus()
        one = output(bus, broker.port, qos=qos)
        seen = bus.subscribe("other", 10_000)
        async with running(one, close_s=0.2):
            await eventually(lambda: one.state == "working" and heard.last("vlm/box/status") == "online")
            with broker.paused():
                for number in range(5000):
                    bus.publish(finished(number, "x" * 3000))
                    if number % 100 == 0:
                        await asyncio.sleep(0)
                assert (seen.waiting, seen.dropped) == (5000, 0)
                assert one.subscription.waiting <= one.subscription.capacity
                assert one.dropped >= 1000
            await eventually(lambda: heard.last(CAPTION) is not None)

    with Mosquitto(tmp_path) as broker, broker.listener("vlm/box/status", CAPTION) as heard:
        asyncio.run(main())


def test_the_broker_says_offline_when_the_daemon_is_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from runtime.captiond.bus import Bus; from runtime.captiond.clock import Clock;"
        "from runtime.captiond.config.settings import MqttSettings; from runtime.captiond.outputs.mqtt import Mqtt;"
        "asyncio.run(Mqtt(MqttSettings(host='localhost', port=int(sys.argv[1])), 'box', Bus(), Clock()).run())"
    )
    with Mosquitto(tmp_path) as broker, broker.listener("vlm/box/status") as heard:
        with subprocess.Popen([sys.executable, "-c", script, str(broker.port)], cwd=ROOT) as daemon:
            wait_for(lambda: heard.payloads("vlm/box/status") == ["online"])
            os.kill(daemon.pid, signal.SIGKILL)
            wait_for(lambda: heard.payloads("vlm/box/status") == ["online", "offline"])
