"""GStreamer pipelines as values: the daemon says which elements, the GStreamer child makes them one by one.

A pipeline is JSON: {"elements": [element …], "branches": {codec: [chain …]} or absent}. An element is {"make": factory,
"set": {property: value}, "name": …}, a filter is {"caps": …}. What comes from a user (locations, users, passwords) only
ever stands as a value of a property, so no character of it can end a string or begin an element. ``branches``: the
last of ``elements`` brings its outputs while it runs; the first video among them goes on with the first chain of its
codec whose elements are all there: hardware before software.

Elements with these names are known to the child: "source" (receives user and password), "gate" (the size of what is
coded is checked there, before a decoder sees it), "scale" (a filter that gets the size to which frames are scaled).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from runtime.captiond.capture.start import scheme_of, without_userinfo
from runtime.captiond.config.settings import SourceSettings
from runtime.errors import SourceError

Element = dict[str, object]
Chain = list[Element]
Pipeline = dict[str, object]

_LATENCY_FACTOR = 1_000_000


def make(factory: str, name: str | None = None, **properties: object) -> Element:
    """An element; underscores of property names stand for hyphens."""
    named = {} if name is None else {"name": name}
    return {"make": factory, "set": {key.replace("_", "-"): value for key, value in properties.items()}, **named}


def caps(text: str, name: str | None = None) -> Element:
    """A filter. ``text`` never holds what a user wrote, but numbers."""
    return {"caps": text} if name is None else {"caps": text, "name": name}


GATE = make("identity", "gate")
_SCALE = [make("videoscale"), caps("video/x-raw", "scale")]
_NV_SCALE = [make("nvvidconv"), caps("video/x-raw,format=BGRx", "scale")]


def decoders(codec: str) -> list[Chain]:
    """The chains that decode and scale one codec, hardware first; empty for a codec that nothing here decodes."""
    known: dict[str, tuple[Chain, Chain, tuple[str, ...]]] = {
        "H264": ([make("h264parse")], [make("nvv4l2decoder")], ("avdec_h264", "openh264dec")),
        "H265": ([make("h265parse")], [make("nvv4l2decoder")], ("avdec_h265", "libde265dec")),
        "JPEG": ([make("jpegparse")], [make("nvv4l2decoder", mjpeg=True)], ("jpegdec", "avdec_mjpeg")),
        "VP8": ([], [make("nvv4l2decoder")], ("vp8dec", "avdec_vp8")),
        "VP9": ([make("vp9parse")], [make("nvv4l2decoder")], ("vp9dec", "avdec_vp9")),
        "AV1": ([make("av1parse")], [make("nvv4l2decoder")], ("dav1ddec", "av1dec")),
        "MPEG4": ([make("mpeg4videoparse")], [], ("avdec_mpeg4",)),
        "MPEG2": ([make("mpegvideoparse")], [], ("avdec_mpeg2video",)),
    }
    if codec not in known:
        return []
    parse, hardware, software = known[codec]
    chains = [[*parse, GATE, *hardware, *_NV_SCALE]] if hardware else []
    return chains + [[*parse, GATE, make(name), *_SCALE] for name in software]


def rtsp(source: SourceSettings) -> Pipeline:
    """An RTSP camera: only its video is set up, whatever comes first in its description."""
    parts = urlsplit(source.uri)
    element = make(
        "rtspsrc",
        "source",
        location=without_userinfo(source.uri)[0],
        protocols=source.transport,
        latency=source.latency_ms,
        drop_on_latency=True,
        timeout=round(source.open_timeout_s * _LATENCY_FACTOR),
        tcp_timeout=round(source.open_timeout_s * _LATENCY_FACTOR),
        do_rtsp_keep_alive=True,
    )
    if parts.scheme.lower() == "rtsps":
        element["set"] = {**_properties(element), "protocols": "tls" if source.transport == "tcp" else "udp"}
    payloads = {"H264": "rtph264depay", "H265": "rtph265depay", "JPEG": "rtpjpegdepay", "VP8": "rtpvp8depay"}
    payloads |= {"VP9": "rtpvp9depay", "MP4V-ES": "rtpmp4vdepay"}
    return {
        "elements": [element],
        "branches": {
            name: [[_queue(), make(depay), *chain] for chain in decoders("MPEG4" if name == "MP4V-ES" else name)]
            for name, depay in payloads.items()
        },
    }


def file(source: SourceSettings) -> Pipeline:
    """A video file; what its container holds decides."""
    branches: dict[str, list[Chain]] = {}
    media = {"video/x-h264": "H264", "video/x-h265": "H265", "image/jpeg": "JPEG", "video/x-vp8": "VP8"}
    media |= {"video/x-vp9": "VP9", "video/x-av1": "AV1", "video/mpeg": "MPEG4"}
    for name, codec in media.items():
        chains = decoders(codec) + (decoders("MPEG2") if name == "video/mpeg" else [])
        branches[name] = [[_queue(), *chain] for chain in chains]
    return {
        "elements": [make("filesrc", "source", location=path_of(source.uri)), make("parsebin")],
        "branches": branches,
    }


def v4l2(source: SourceSettings) -> Pipeline:
    """A camera of Video4Linux: raw or JPEG, as it offers; JPEG where a size above VGA is asked for."""
    wanted = "".join(
        f",{name}={value}" for name, value in (("width", source.width), ("height", source.height)) if value is not None
    )
    rate = "" if source.fps is None else f",framerate={fraction(source.fps)}"
    large = (source.width or 0) * (source.height or 0) > 640 * 480
    kinds = ["image/jpeg", "video/x-raw"] if large else ["video/x-raw", "image/jpeg"]
    return {
        "elements": [
            make("v4l2src", "source", device=device_of(source.uri), do_timestamp=True),
            caps(";".join(f"{kind}{wanted}{rate}" for kind in kinds)),
        ],
        "branches": {"image/jpeg": decoders("JPEG"), "video/x-raw": [[GATE, make("videoconvert"), *_SCALE]]},
        "stamps": "exposure",
    }


def pipeline_of(source: SourceSettings) -> Pipeline:
    """The pipeline of a source for any machine. Raises SourceError where GStreamer is not used for its scheme."""
    scheme = scheme_of(source.uri)
    if scheme == "gst":
        return {"launch": source.uri[len("gst:") :].strip()}
    made = {"rtsp": rtsp, "rtsps": rtsp, "file": file, "v4l2": v4l2}.get(scheme)
    if made is None:
        raise SourceError(f"{scheme}:// is not opened with GStreamer here", hint='set backend = "auto"')
    return made(source)


def path_of(uri: str) -> str:
    """The path of a file URI; a bare path as it is."""
    return unquote(urlsplit(uri).path) if uri[:5].lower() == "file:" else uri


def device_of(uri: str) -> str:
    """The device of ``v4l2:///dev/video0``, ``v4l2://0`` or ``/dev/video0``. Raises SourceError for another path."""
    text = uri if uri.startswith("/") else uri.split("://", 1)[1]
    device = f"/dev/video{text}" if text.isdecimal() else text
    if not (device.startswith("/dev/") and ".." not in device.split("/")):
        raise SourceError(f"{uri}: not a camera device", hint="for instance v4l2:///dev/video0")
    return device


def fraction(fps: float) -> str:
    """A frame rate as GStreamer writes it."""
    for below, near in ((1, 1e-3), (2, 1e-3), (1001, 0.1)):  # 29.97 means 30000/1001
        if abs(fps * below - round(fps * below)) < near:
            return f"{round(fps * below)}/{below}"
    return f"{round(fps * 1000)}/1000"


def _queue() -> Element:
    return make("queue", max_size_buffers=200, max_size_bytes=8_388_608, max_size_time=0)


def _properties(element: Element) -> Mapping[str, object]:
    found = element["set"]
    assert isinstance(found, dict)
    return found
