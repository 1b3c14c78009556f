"""A GStreamer pipeline made from values, and what its bus says in words of ours. Imported by the system's Python alone.

Callbacks run on threads of GStreamer: they only set what the main thread looks at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

try:
    import gi

    gi.require_version("Gst", "1.0")
    from gi.repository import GObject, Gst

    Gst.init(None)
except (ImportError, ValueError):  # no gi here: `working` says so
    gi = Gst = GObject = None

_FPS_RANGE = (0.1, 1000.0)
_STATUS = re.compile(r"\((4\d\d|5\d\d)\)")
_TAIL: tuple[dict[str, Any], ...] = (
    {"make": "videoconvert", "set": {}},
    {"caps": "video/x-raw,format=RGB,pixel-aspect-ratio=[1/64,64/1]", "name": "rgb"},
    {"make": "appsink", "set": {"max-buffers": 1, "sync": False, "emit-signals": False}, "name": "sink"},
)
# What the bus says, by the name of its domain and code.
_CAUSES = {
    "gst-resource-error-quark": {
        3: "missing", 4: "busy", 5: "refused", 6: "refused", 7: "refused", 9: "closed", 10: "closed", 15: "401",
    },
    "gst-stream-error-quark": {
        4: "unsupported", 5: "unsupported", 6: "unsupported", 7: "damaged", 9: "damaged", 11: "unsupported",
    },
    "gst-core-error-quark": {12: "unsupported"},
}  # fmt: skip
_MAX_TEXT = 200


class Failure(Exception):
    """An attempt that came to nothing; causes as in `runtime.captiond.capture.failures`."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def working() -> bool:
    """Whether GStreamer and the elements that every pipeline needs are here."""
    needed = ("appsink", "videoconvert", "videoscale", "identity", "queue", "capsfilter")
    return Gst is not None and all(_exists(name) for name in needed)


class Running:
    """A pipeline that plays from `__enter__` on. ``sink``: its appsink."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        if not working():
            raise Failure("unsupported", "GStreamer or its basic elements are not here")
        self._arguments = arguments
        self._live = not arguments["every_frame"]
        self._failure: Failure | None = None
        self._linked = False
        self._stamped = False
        spec: Mapping[str, Any] = arguments["pipeline"]
        self._stamped = spec.get("stamps") == "exposure"
        self._pipeline = self._launched(spec["launch"]) if "launch" in spec else self._made(spec)
        self.sink = self._pipeline.get_by_name("sink")
        self._paced = arguments["scheme"] == "file" and self._live
        self.sink.set_property("sync", self._paced)
        self.sink.set_property("max-buffers", 1)
        self.sink.set_property("drop", self._live and not self._paced)

    def __enter__(self) -> Running:
        self._pipeline.set_state(Gst.State.PLAYING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # after a failure the process ends at once: a camera that hangs may not let go
            self._pipeline.set_state(Gst.State.NULL)

    def check(self) -> None:
        """Raises what a thread or the bus has noticed."""
        if self._failure is not None:
            raise self._failure
        message = self._pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
        if message is not None:
            raise _failure_of(*message.parse_error())

    def check_size(self, width: int, height: int) -> None:
        """Raises Failure for frames above ``max_pixels``."""
        limit = int(self._arguments["max_pixels"])
        if width * height > limit:
            raise Failure("too_large", f"frames of {width}x{height} px, the limit is {limit:,} pixels")

    def ended(self) -> bool:
        """Whether the last frame was taken."""
        return bool(self.sink.get_property("eos"))

    def rewind(self) -> bool:
        """Begin a file again."""
        return bool(self._pipeline.seek_simple(Gst.Format.TIME, Gst.SeekFlags.FLUSH, 0))

    def rate(self, shape: Any) -> float | None:
        """Frames per second, where the stream says it."""
        known, above, below = shape.get_fraction("framerate")
        fps = above / below if known and below else 0.0
        return fps if _FPS_RANGE[0] <= fps <= _FPS_RANGE[1] else None

    def stamp_ns(self, sample: Any) -> int | None:
        """CLOCK_MONOTONIC of the driver's stamp, for sources that have one."""
        clock = self._pipeline.get_clock()
        if (
            not self._stamped
            or not isinstance(clock, Gst.SystemClock)
            or sample.get_buffer().pts == Gst.CLOCK_TIME_NONE
        ):
            return None
        running = sample.get_segment().to_running_time(Gst.Format.TIME, sample.get_buffer().pts)
        return None if running == Gst.CLOCK_TIME_NONE else int(self._pipeline.get_base_time() + running)

    # ---- making it

    def _launched(self, text: str) -> Any:
        """The configuration's own pipeline; an appsink is added where it has none."""
        try:
            made = Gst.parse_launch(text if "appsink" in text else f"{text} ! videoconvert ! appsink name=sink")
        except gi.repository.GLib.Error as problem:
            raise Failure("unsupported", f"the pipeline cannot be made: {_short(problem.message)}") from None
        sink = made.get_by_name("sink") if isinstance(made, Gst.Pipeline) else None
        if sink is None or sink.get_factory().get_name() != "appsink":
            raise Failure("unsupported", "the pipeline does not end in an appsink named sink")
        sink.set_property("caps", Gst.Caps.from_string("video/x-raw,format=RGB"))
        return made

    def _made(self, spec: Mapping[str, Any]) -> Any:
        pipeline = Gst.Pipeline.new(None)
        self._pipeline = pipeline
        elements: list[Mapping[str, Any]] = spec["elements"]
        branches: Mapping[str, Any] | None = spec.get("branches")
        head = self._chain(elements if branches else [*elements, *_TAIL])
        if branches:
            tail = self._chain(_TAIL)
            last = head[-1]
            if last.get_static_pad("src") is not None:
                last.get_static_pad("src").add_probe(Gst.PadProbeType.EVENT_DOWNSTREAM, self._on_caps, (branches, tail))
            else:
                last.connect("pad-added", self._on_pad, branches, tail)
                last.connect("no-more-pads", self._on_no_more)
        source = pipeline.get_by_name("source")
        for name, value in (("user-id", "user"), ("user-pw", "password")):
            if source is not None and self._arguments[value] is not None and source.find_property(name):
                source.set_property(name, self._arguments[value])
        if source is not None and source.get_factory().get_name() == "rtspsrc":
            source.connect("select-stream", _only_video)
        return pipeline

    def _chain(self, chain: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Make the elements, add and link them."""
        made = [_element(values) for values in chain]
        for element in made:
            self._pipeline.add(element)
            if element.get_name().startswith("gate"):
                element.get_static_pad("sink").add_probe(Gst.PadProbeType.EVENT_DOWNSTREAM, self._on_size)
        for first, second in pairwise(made):
            if not first.link(second):
                raise Failure("unsupported", f"{first.get_name()} does not go with {second.get_name()}")
        return made

    def _on_pad(self, _: Any, pad: Any, branches: Mapping[str, Any], tail: list[Any]) -> None:
        caps = pad.get_current_caps() or pad.query_caps(None)
        self._branch(pad, caps.get_structure(0), branches, tail)

    def _on_caps(self, pad: Any, info: Any, user: tuple[Mapping[str, Any], list[Any]]) -> Any:
        """A source with one output, whose kind is known when it begins."""
        event = info.get_event()
        if event.type == Gst.EventType.CAPS:
            self._branch(pad, event.parse_caps().get_structure(0), *user)
        return Gst.PadProbeReturn.OK

    def _on_no_more(self, _: Any) -> None:
        if not self._linked and self._failure is None:
            self._failure = Failure("no_video", "no video among its streams")

    def _branch(self, pad: Any, shape: Any, branches: Mapping[str, Any], tail: list[Any]) -> None:
        """Go on from a new output, if it is the first video."""
        name = shape.get_name()
        if name == "application/x-rtp":
            if shape.get_string("media") != "video":
                return
            name = (shape.get_string("encoding-name") or "").upper()
        elif not name.startswith(("video/", "image/")):
            return
        if self._linked:
            return
        chains = [chain for chain in branches.get(name, []) if all(_exists(each.get("make")) for each in chain)]
        if not chains:
            self._failure = self._failure or Failure(
                "unsupported", f"video of the kind {_short(name)} is not decoded here"
            )
            return
        try:
            chain = self._chain(chains[0])
            chain[-1].link(tail[0])
            for element in reversed(chain):
                element.sync_state_with_parent()
            self._linked = pad.link(chain[0].get_static_pad("sink")) == Gst.PadLinkReturn.OK
        except Failure as failed:
            self._failure = failed

    def _on_size(self, pad: Any, info: Any) -> Any:
        """What is coded says how large it is: refuse it before it is decoded, choose the size that is asked for."""
        event = info.get_event()
        if event.type != Gst.EventType.CAPS:
            return Gst.PadProbeReturn.OK
        shape = event.parse_caps().get_structure(0)
        (has_width, width), (has_height, height) = shape.get_int("width"), shape.get_int("height")
        if not (has_width and has_height):
            return Gst.PadProbeReturn.OK
        try:
            self.check_size(width, height)
        except Failure as failed:
            self._failure = failed
            return Gst.PadProbeReturn.DROP
        self._scale(width, height)
        return Gst.PadProbeReturn.OK

    def _scale(self, width: int, height: int) -> None:
        side = int(self._arguments["max_side_px"])
        scale = self._pipeline.get_by_name("scale")
        if scale is None:
            return
        factor = min(1.0, side / max(width, height))
        size = f",width={max(1, round(width * factor))},height={max(1, round(height * factor))}"
        kind = scale.get_property("caps").get_structure(0)
        form = kind.get_string("format")
        text = "video/x-raw" + (f",format={form}" if form else "") + size
        scale.set_property("caps", Gst.Caps.from_string(text))


def copy_rgb(buffer: Any, place: memoryview, width: int, height: int) -> None:
    """RGB rows into the ring, without what pads them."""
    whole, info = buffer.map(Gst.MapFlags.READ)
    if not whole:
        raise Failure("damaged", "a frame that cannot be read")
    try:
        with memoryview(info.data) as data:
            row = 3 * width
            step = data.nbytes // height
            if step < row:
                raise Failure("damaged", f"{data.nbytes} bytes are no RGB frame of {width}x{height}")
            if step == row:
                place[:] = data[: row * height]
                return
            for y in range(height):
                place[y * row : (y + 1) * row] = data[y * step : y * step + row]
    finally:
        buffer.unmap(info)


def _exists(factory: object) -> bool:
    return factory is None or Gst.ElementFactory.find(factory) is not None


def _element(values: Mapping[str, Any]) -> Any:
    """One element of a chain."""
    factory = values.get("make", "capsfilter")
    element = Gst.ElementFactory.make(factory, values.get("name"))
    if element is None:
        raise Failure("unsupported", f"GStreamer has no element {factory}")
    if "caps" in values:
        element.set_property("caps", Gst.Caps.from_string(values["caps"]))
    for name, value in values.get("set", {}).items():
        found = element.find_property(name)
        if found is None:
            raise Failure("unsupported", f"the element {factory} has no property {name}")
        if isinstance(value, str) and found.value_type != GObject.TYPE_STRING:
            Gst.util_set_object_arg(element, name, value)  # an enumeration or flags by name, never a user's text
        else:
            element.set_property(name, value)
    return element


def _only_video(_: Any, __: int, caps: Any) -> bool:
    """rtspsrc asks which of the described streams to set up."""
    return bool(caps.get_structure(0).get_string("media") == "video")


def _failure_of(problem: Any, details: str | None) -> Failure:
    """An error of the bus: its own texts may hold addresses, so only its kind is told, and a status."""
    text = f"{problem.message} {details or ''}"
    status = _STATUS.search((details or "").partition("\n")[2])  # before that stands where in its code it happened
    cause = _CAUSES.get(problem.domain, {}).get(problem.code, "failed")
    if status and "gst-resource" in problem.domain:
        cause = status[1]
    for words, known in _WORDS:
        if words in text:
            cause = known
            break
    return Failure(cause, _short(problem.message))


_WORDS: tuple[tuple[str, str], ...] = (
    ("Connection refused", "refused"),
    ("Could not resolve", "refused"),
    ("No route to host", "refused"),
    ("Network is unreachable", "refused"),
    ("timed out", "timeout"),
    ("Timeout while waiting", "timeout"),
    ("No supported stream", "no_video"),
    ("Unauthorized", "401"),
    ("Forbidden", "403"),
    ("Not Found", "404"),
    ("Connection reset", "closed"),
)


def _short(text: str) -> str:
    return " ".join(text.split())[:_MAX_TEXT]
