"""Files, pictures, recordings and rendered scenes, through `runtime.sources`."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.captiond.capture import ffmpeg
from runtime.captiond.capture.delivery import Delivery
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.plan import Plan
from runtime.errors import ImageError, SourceError
from runtime.sources import FrameSource, Source, open_unbuffered
from runtime.types import Frame

_MAX_DAMAGED = 100
_CAUSES = (
    ("there is no such", "missing"),
    ("no file matches", "missing"),
    ("no pictures in this directory", "missing"),
    ("the limit is", "too_large"),
    ("cannot be imported", "unsupported"),
    ("of a known ", "unsupported"),
    ("nothing here opens", "unsupported"),
)


def run(plan: Plan, delivery: Delivery) -> None:
    """Deliver the frames in order, at their pace unless ``every_frame``. A picture that is damaged is left out.

    Raises CaptureFailed for what cannot be read, and when no picture can.
    """
    ffmpeg.permit("file")
    ffmpeg.silence()
    try:
        with open_unbuffered(
            plan.uri, every_frame=plan.every_frame, loop=plan.loop, max_pixels=plan.max_pixels, threads=1
        ) as source:
            for frame in _readable(source):
                height, width = frame.rgb.shape[:2]
                if not delivery.delivered:
                    fps = source.fps if isinstance(source, FrameSource) else None
                    delivery.opened(width, height, fps, plan.scheme)
                delivery.deliver(frame.rgb, bgr=False, t_capture_ns=frame.t_capture_ns, kind=frame.t_capture_kind)
    except CaptureFailed:
        raise
    except SourceError as problem:
        cause = next((cause for words, cause in _CAUSES if words in problem.message), "damaged")
        raise CaptureFailed(cause, problem.message, hint=problem.hint) from problem
    if not delivery.delivered:
        raise CaptureFailed("damaged", f"{plan.uri}: none of its pictures can be decoded")


def _readable(source: Source) -> Iterator[Frame]:
    """The frames that can be decoded; a hundred in a row that cannot end it."""
    frames = iter(source)
    damaged = 0
    while damaged < _MAX_DAMAGED:
        try:
            frame = next(frames, None)
        except ImageError:
            damaged += 1
            continue
        if frame is None:
            return
        damaged = 0
        yield frame
    raise CaptureFailed("damaged", f"{source.name}: {_MAX_DAMAGED} pictures in a row cannot be decoded")
