"""The server as a whole: where it listens, TLS, new settings, and its end."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from runtime.captiond.config import ServerSettings
from runtime.captiond.http.server import HttpServer
from runtime.errors import ConfigError, NetworkError
from tests.peers.certificates import Certificates, make_certificates
from tests.runtime.captiond import sample_events as made
from tests.runtime.captiond.http.parts import ALL_KEYS, bearer, client, services, serving


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def trusting(authority: Path, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority))
    context.maximum_version = newest
    return context


def tls(made: Certificates) -> dict[str, str]:
    return {"certificate_file": str(made.server), "private_key_file": str(made.server_key)}


@pytest.mark.parametrize("listen", ["127.0.0.1", "localhost", "::1"])
def test_it_listens_where_it_is_told_and_says_where(listen: str) -> None:
    async def main() -> None:
        async with serving(listen=listen) as running:
            host = {"localhost": "127.0.0.1"}.get(listen, listen)
            async with client() as session, session.get(running.server.url + "health") as answer:
                assert answer.status == 200
            assert socket.create_connection((host, running.port)).close() is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (ServerSettings(listen="192.0.2.77", port=0, keys=ALL_KEYS), NetworkError, "192.0.2.77"),
        (ServerSettings(listen="nowhere", port=0, keys=ALL_KEYS), ConfigError, "no IP address"),
        (ServerSettings(port=0, certificate_file="/nowhere.pem"), ConfigError, "belong together"),
        (ServerSettings(port=0, certificate_file="/a.pem", private_key_file="/b.pem"), ConfigError, "/a.pem"),
    ],
)
def test_where_it_cannot_listen_it_says_why(settings: ServerSettings, error: type[Exception], words: str) -> None:
    async def main() -> None:
        with pytest.raises(error, match=words):
            await HttpServer(settings, services(), services().clock).start()

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_error_with_its_number() -> None:
    async def main() -> None:
        async with serving() as running:
            second = HttpServer(ServerSettings(port=running.port), services(), services().clock)
            with pytest.raises(NetworkError, match=str(running.port)):
                await second.start()
            await second.stop()

    asyncio.run(main())


def test_tls_is_spoken_from_1_2_on_with_a_cookie_that_needs_it(certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS, **tls(certificates)) as running, client() as session:
            url = f"https://localhost:{running.port}"
            for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context = trusting(certificates.authority, newest)
                async with session.get(url + "/api/state", headers=bearer("read"), ssl=context) as answer:
                    assert answer.status == 200
            context = trusting(certificates.authority)
            async with session.post(url + "/api/login", json={"key": "x"}, ssl=context) as answer:
                assert answer.status == 401
            key = {"key": bearer("read")["Authorization"].split()[1]}
            async with session.post(url + "/api/login", json=key, ssl=context) as answer:
                assert answer.headers["Set-Cookie"].startswith("__Host-vlm=")
                assert "Secure" in answer.headers["Set-Cookie"]
            for foreign in (trusting(certificates.stranger), ssl.create_default_context()):
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await session.get(url + "/health", ssl=foreign)
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await session.get(f"http://localhost:{running.port}/health")

    asyncio.run(main())


def test_old_tls_is_refused(certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(**tls(certificates)) as running:
            context = trusting(certificates.authority)
            with pytest.warns(DeprecationWarning):
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("localhost", running.port, ssl=context)

    asyncio.run(main())


def test_new_files_of_tls_are_taken_by_reload_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    old, new = make_certificates(first), make_certificates(second)
    current = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(made: Certificates) -> None:
        shutil.copy(made.server, current[0])
        shutil.copy(made.server_key, current[1])

    async def main() -> None:
        install(old)
        files = {"certificate_file": str(current[0]), "private_key_file": str(current[1])}
        async with serving(**files) as running:

            async def trusts(authority: Path) -> bool:
                async with client() as session:
                    try:
                        url = f"https://localhost:{running.port}/health"
                        async with session.get(url, ssl=trusting(authority)) as answer:
                            return answer.status == 200
                    except aiohttp.ClientConnectorCertificateError:
                        return False

            settings = replace(ServerSettings(), **files)
            assert (await trusts(old.authority), await trusts(new.authority)) == (True, False)
            install(new)
            running.server.reload(settings)
            assert (await trusts(old.authority), await trusts(new.authority)) == (False, True)
            current[1].write_text("nothing")
            with pytest.raises(ConfigError, match=r"key\.pem"):
                running.server.reload(replace(settings, hosts=("other.lan",)))
            assert await trusts(new.authority)
            assert not running.server._gate.names.hosts

    asyncio.run(main())


def test_new_settings_take_effect_and_the_last_key_stays_on_the_network() -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS, listen="0.0.0.0") as running, client() as session:

            async def status(headers: dict[str, str]) -> int:
                async with session.get(running.url + "/api/state", headers=bearer("read") | headers) as answer:
                    return answer.status

            assert await status({}) == 200
            assert await status({"Host": "cam.lan"}) == 403
            running.server.reload(ServerSettings(keys=ALL_KEYS, hosts=("CAM.lan",)))
            assert await status({"Host": "cam.lan"}) == 200
            running.server.reload(ServerSettings(keys=ALL_KEYS[1:], hosts=("CAM.lan",)))
            assert await status({}) == 401
            with pytest.raises(ConfigError, match="no API key"):
                running.server.reload(ServerSettings())
            assert await status({}) == 401

    asyncio.run(main())


def test_it_stops_though_watchers_and_idle_clients_are_there_and_streams_end_whole() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            async with session.get(running.url + "/health") as answer:
                await answer.read()  # stays open, idle
            events = await session.get(running.url + "/events")
            running.services.bus.publish(made.rule())
            await asyncio.sleep(0.1)
            await asyncio.wait_for(running.server.stop(2.0), 30)
            assert b"event: rule" in await events.read()
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(running.url + "/health")
            await running.server.stop(2.0)

    asyncio.run(main())
