"""One attempt at one source in a process of its own: open it once, deliver its frames, say how it ended, exit.

Forked by `zygote`. It never retries: whoever started it does, in a fresh process. ``main(socket, fds, arguments)`` with
``fds = [ring]`` is run there.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Mapping

from runtime.captiond.capture import confine, messages
from runtime.captiond.capture.delivery import Delivery
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.plan import Plan
from runtime.captiond.capture.ring import Ring
from runtime.errors import VlmError

_OPENERS = {
    "file": "runtime.captiond.capture.played",
    "synthetic": "runtime.captiond.capture.played",
    "rosbag": "runtime.captiond.capture.played",
    "http": "runtime.captiond.capture.http_mjpeg",
    "https": "runtime.captiond.capture.http_mjpeg",
    "rtsp": "runtime.captiond.capture.opencv_stream",
    "rtsps": "runtime.captiond.capture.opencv_stream",
    "v4l2": "runtime.captiond.capture.opencv_stream",
}
_FAILED = 5


def main(sock: socket.socket, fds: list[int], arguments: Mapping[str, object]) -> int:
    """Deliver until the source ends or fails. Exit status 0 for an end, 5 for a failure that was told."""
    plan = Plan.of(arguments)
    confine.limit_memory(plan.memory_mib)
    try:
        import cv2
    except ImportError as problem:
        text = f"OpenCV cannot be loaded: {problem} (hint: pip install opencv-python-headless)"
        messages.send(sock, {"type": "failed", "cause": "unsupported", "message": text})
        return _FAILED
    cv2.setNumThreads(1)
    delivery = Delivery(sock, Ring.attach(fds[0]), plan, cv2)
    try:
        failed = _attempt(plan, delivery)
        if failed is None:
            delivery.say({"type": "ended"})
            return 0
        text = failed.message if failed.hint is None else f"{failed.message} (hint: {failed.hint})"
        delivery.say({"type": "failed", "cause": failed.cause, "message": text})
    except OSError:  # the daemon is gone or does not listen
        return _FAILED
    return _FAILED


def _attempt(plan: Plan, delivery: Delivery) -> CaptureFailed | None:
    """Run one attempt; None when the source came to its end."""
    try:
        module = _OPENERS.get(plan.scheme)
        if module is None:
            raise CaptureFailed("unsupported", f"nothing here opens {plan.scheme}://")
        importlib.import_module(module).run(plan, delivery)
    except CaptureFailed as failed:
        return failed
    except MemoryError:
        return _no_memory(plan)
    except VlmError as problem:
        return CaptureFailed("internal", problem.message, hint=problem.hint)
    except OSError as problem:
        return CaptureFailed("internal", f"{plan.uri}: {problem.strerror or type(problem).__name__}")
    except Exception as problem:  # noqa: BLE001 - top of a worker: handed over, by its type, a library's text is not shown
        if "Insufficient memory" in str(problem):
            return _no_memory(plan)
        return CaptureFailed("internal", f"{plan.uri}: the capture failed with {type(problem).__name__}")
    return None


def _no_memory(plan: Plan) -> CaptureFailed:
    hint = "set memory_mib of this source, or have the camera send smaller frames"
    return CaptureFailed("memory", f"{plan.uri}: it needs more than {plan.memory_mib} MiB", hint=hint)
