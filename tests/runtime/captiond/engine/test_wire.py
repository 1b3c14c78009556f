"""Messages over a socket: whole, in order, with their files; and peers that do not keep to the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.captiond.engine import wire
from runtime.captiond.engine.wire import Connection, WireError
from tests.runtime.captiond.engine.engines import eventually


class End:
    """One end that remembers what it heard."""

    def __init__(self, end: socket.socket) -> None:
        self.heard: list[dict[str, object]] = []
        self.files: list[int] = []
        self.closed: list[WireError | None] = []
        self.connection = Connection(end, self._message, self.closed.append)

    def _message(self, message: dict[str, object], files: list[int]) -> None:
        self.heard.append(message)
        self.files += files


def open_files() -> list[str]:
    return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


def test_messages_come_whole_in_order_and_with_their_own_files() -> None:
    async def main() -> None:
        left, right = map(End, socket.socketpair())
        reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
        left.connection.send({"type": "a", "n": 1}, reads[:2])
        left.connection.send({"type": "b", "text": "ü" * 300_000})
        left.connection.send({"type": "c"}, reads[2:])
        await eventually(lambda: len(right.heard) == 3)
        assert [message["type"] for message in right.heard] == ["a", "b", "c"]
        assert right.heard[1]["text"] == "ü" * 300_000
        assert left.connection.unsent_bytes == 0
        for index, file in enumerate(right.files):
            os.write(writes[index], b"%d" % index)
            assert os.read(file, 1) == b"%d" % index
        for file in [*right.files, *reads, *writes]:
            os.close(file)
        left.connection.close()
        await eventually(lambda: right.closed == [None])

    asyncio.run(main())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20)), max_size=5), st.data())
def test_messages_survive_any_cut(contents: list[dict[str, str]], data: st.DataObject) -> None:
    sent = [{**content, "type": "x"} for content in contents]
    for message in sent:
        message.pop("files", None)
    texts = [json.dumps(message).encode() for message in sent]
    stream = b"".join(struct.pack(">I", len(text)) + text for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))

    async def main() -> None:
        ours, theirs = socket.socketpair()
        end = End(theirs)
        with ours:
            for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                ours.sendall(stream[start:stop])
                await asyncio.sleep(0)
            await eventually(lambda: len(end.heard) == len(sent))
        await eventually(lambda: end.closed == [None])
        assert end.heard == sent

    asyncio.run(main())


def _framed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (struct.pack(">I", wire.MAX_MESSAGE_BYTES + 1), "announces"),
        (_framed(b"\xff\x00"), "no JSON"),
        (_framed(b"[" * 200_000), "no JSON"),
        (_framed(b"[1]"), "object with a type"),
        (_framed(b'{"type": 3}'), "object with a type"),
        (_framed(b'{"type": "x", "files": 1}'), "files"),
        (_framed(b'{"type": "x", "files": -1}'), "files"),
        (_framed(b'{"type": "x", "files": "1"}'), "files"),
        (b"\x00\x00\x00\x09{", "within a message"),
    ],
    ids=["too long", "no JSON", "deep", "no object", "no type", "no files", "negative", "text", "cut off"],
)
def test_nonsense_ends_the_connection_and_nothing_else(sent: bytes, says: str) -> None:
    async def main() -> None:
        before = open_files()
        ours, theirs = socket.socketpair()
        end = End(theirs)
        with ours:
            ours.sendall(sent)
            if says == "within a message":
                ours.shutdown(socket.SHUT_WR)
            await eventually(lambda: bool(end.closed))
        assert says in str(end.closed[0])
        assert end.heard == [] and end.connection.closed
        end.connection.send({"type": "late"})
        assert open_files() == before

    asyncio.run(main())


def test_handler_that_refuses_a_message_ends_the_connection() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        closed: list[WireError | None] = []

        def refuse(message: dict[str, object], files: list[int]) -> None:
            raise WireError("not now")

        Connection(theirs, refuse, closed.append)
        with ours:
            ours.sendall(_framed(b'{"type": "x"}') * 2)
            await eventually(lambda: bool(closed))
        assert [str(problem) for problem in closed] == ["not now"]

    asyncio.run(main())


def test_peer_that_does_not_read_costs_a_bounded_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_UNSENT_BYTES", 1 << 20)

    async def main() -> None:
        before = open_files()
        ours, theirs = socket.socketpair()
        end = End(ours)
        with theirs, Path("/dev/null").open() as file:
            for _ in range(100):
                end.connection.send({"type": "x", "text": "y" * 100_000}, [file.fileno()])
            assert end.connection.closed and end.connection.unsent_bytes == 0
            assert "unread" in str(end.closed[0])
        assert open_files() == before

    asyncio.run(main())


def test_message_above_the_limits_is_refused_to_the_sender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)

    async def main() -> None:
        left, right = map(End, socket.socketpair())
        with pytest.raises(WireError, match="the most is 1000"):
            left.connection.send({"type": "x", "text": "y" * 1000})
        with pytest.raises(WireError, match="65 files"):
            left.connection.send({"type": "x"}, [0] * 65)
        left.connection.send({"type": "small"})
        await eventually(lambda: bool(right.heard))
        left.connection.close()
        left.connection.close()
        await eventually(lambda: right.closed == [None])

    asyncio.run(main())
