"""The children that make pictures; started by the launcher with ``main(socket, fds, arguments)``.

One request at a time, in their order: {"type", "id", …} and open files. "attach" and "detach" are not answered.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.captiond.capture import confine, messages

_MEMORY_MIB = {"camera": 384, "uploads": 512}

Answer = dict[str, object]
Handler = Callable[[Mapping[str, Any], Sequence[int]], "Answer | None"]


def main(sock: socket.socket, fds: Sequence[int], arguments: Mapping[str, Any]) -> int:
    """Answer requests until the daemon closes its end. ``arguments``: "role" ("camera", "uploads") and its limits."""
    role = str(arguments["role"])
    handlers = _handlers(role, arguments)
    confine.limit_memory(_MEMORY_MIB[role])
    while (received := messages.receive(sock, messages.MAX_FDS)) is not None:
        message, given = received
        try:
            answer = handlers[str(message["type"])](message, given)
        finally:
            for fd in given:
                os.close(fd)
        if answer is not None:
            messages.send(sock, {"type": "answer", "id": message["id"], **answer})
    return 0


def _handlers(role: str, arguments: Mapping[str, Any]) -> Mapping[str, Handler]:
    """What this child can do; it loads nothing else."""
    if role == "uploads":
        from runtime.captiond.pictures.uploads import Uploads

        return Uploads(max_bytes=int(arguments["max_bytes"]), max_pixels=int(arguments["max_pixels"])).handlers
    from runtime.captiond.pictures.camera import Camera

    return Camera().handlers
