"""The process behind `tests.peers.rtsp_server`: run by the system's Python, which has GStreamer's bindings.

    /usr/bin/python3 gst_rtsp_server.py '{"raw": "pictures.yuv", "width": 320, "height": 240, "fps": 25, …}'

Serves rtsp://127.0.0.1:<port>/live from raw I420 pictures in a loop, each with its number in blocks of luma. Prints
"ready <port>", then obeys lines of stdin: freeze, thaw, mount, unmount, login, open,
drop, burst <more pictures per tick>, size <w> <h> <raw>.
"""

import json
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 (gi wants the versions first)

BLOCK_PX, BITS = 8, 24
PATH = "/live"
ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast threads=1 bitrate=1500 key-int-max={gop} ! "
    "video/x-h264,profile=baseline ! rtph264pay config-interval=1",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast bitrate=1500 key-int-max={gop} "
    'option-string="pools=none:frame-threads=1:log-level=none" ! rtph265pay config-interval=1',
    "mjpeg": "jpegenc quality=90 ! rtpjpegpay",
}


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class Pictures:
    """Raw I420 pictures in a loop, numbered by the caller."""

    def __init__(self, path, width, height):
        with open(path, "rb") as file:
            self._raw = file.read()
        self.width, self.height = width, height
        self._bytes = width * height * 3 // 2
        self._black, self._white = bytes([16] * BLOCK_PX), bytes([235] * BLOCK_PX)

    def numbered(self, number):
        start = number % (len(self._raw) // self._bytes) * self._bytes
        picture = bytearray(self._raw[start : start + self._bytes])
        bits = [number >> bit & 1 for bit in reversed(range(BITS))]
        row = b"".join(self._white if bit else self._black for bit in bits)
        for y in range(BLOCK_PX):
            picture[y * self.width : y * self.width + len(row)] = row
        return bytes(picture)


class Server:
    """One mount point that can be taken away, and a clock that pushes pictures."""

    def __init__(self, options):
        self.options = options
        self.pictures = Pictures(options["raw"], options["width"], options["height"])
        self.number, self.frozen, self.extra = 0, False, 0
        self.sources = []
        self.server = GstRtspServer.RTSPServer()
        self.server.set_address("127.0.0.1")
        self.server.set_service(str(options["port"]))
        if options["user"]:
            self.login()
        self.mount()
        if not self.server.attach(None):
            raise SystemExit(f"port {options['port']} cannot be had")
        GLib.timeout_add(max(1, round(1000 / options["fps"])), self.tick)

    def mount(self):
        audio = "audiotestsrc is-live=true wave=silence ! alawenc ! rtppcmapay name=pay{} pt=8 "
        encoder = ENCODERS[self.options["codec"]].format(gop=self.options["gop"])
        first = 1 if self.options["audio_first"] else 0
        launch = audio.format(0) if first or self.options["no_video"] else ""
        if not self.options["no_video"]:
            launch += f"appsrc name=pictures ! {encoder} name=pay{first} pt=96"
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {launch} )")
        factory.set_shared(True)
        factory.connect("media-configure", self.configure)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("viewer", "media.factory.access", True)
        permissions.add_permission_for_role("viewer", "media.factory.construct", True)
        factory.set_permissions(permissions)
        self.server.get_mount_points().add_factory(PATH, factory)

    def unmount(self):
        self.server.get_mount_points().remove_factory(PATH)
        self.drop()

    def login(self):
        digest = GstRtsp.RTSPAuthMethod.DIGEST
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(digest if self.options["digest"] else GstRtsp.RTSPAuthMethod.BASIC)
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        user, password = self.options["user"] or "nobody", self.options["password"] or "nothing"
        if self.options["digest"]:
            auth.add_digest(user, password, token)
        else:
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        self.server.set_auth(auth)

    def open(self):
        self.server.set_auth(None)

    def drop(self):
        self.server.client_filter(lambda *_: GstRtspServer.RTSPFilterResult.REMOVE)

    def size(self, width, height, raw):
        self.pictures = Pictures(raw, int(width), int(height))
        for source in self.sources:
            source.set_property("caps", self.caps())

    def freeze(self):
        self.frozen = True

    def thaw(self):
        self.frozen = False

    def burst(self, extra):
        self.extra = int(extra)

    def caps(self):
        text = f"video/x-raw,format=I420,width={self.pictures.width},height={self.pictures.height}"
        return Gst.Caps.from_string(f"{text},framerate={self.options['fps']}/1")

    def configure(self, _, media):
        source = media.get_element().get_by_name("pictures")
        if source is None:
            return
        for name, value in {"is-live": True, "format": Gst.Format.TIME, "max-bytes": 4_000_000, "block": False}.items():
            source.set_property(name, value)
        source.set_property("caps", self.caps())
        self.sources.append(source)
        media.connect("unprepared", lambda _: self.sources.remove(source))

    def tick(self):
        for _ in range(0 if self.frozen else 1 + self.extra):
            self.push()
        return True

    def push(self):
        self.number += 1
        for source in self.sources:
            if source.get_property("current-level-bytes") > 2_000_000:
                continue
            buffer = Gst.Buffer.new_wrapped(self.pictures.numbered(self.number))
            time_ns = source.get_current_running_time()
            buffer.pts = buffer.dts = time_ns if time_ns < Gst.CLOCK_TIME_NONE else 0
            source.emit("push-buffer", buffer)

    def obey(self, stream, _):
        words = stream.readline().split()
        if not words:
            self.loop.quit()
            return False
        orders = {
            "freeze": self.freeze,
            "thaw": self.thaw,
            "burst": self.burst,
            "mount": self.mount,
            "unmount": self.unmount,
            "login": self.login,
            "open": self.open,
            "drop": self.drop,
            "size": self.size,
        }
        orders[words[0]](*words[1:])
        say("done", words[0])
        return True

    def run(self):
        self.loop = GLib.MainLoop()
        GLib.io_add_watch(sys.stdin, GLib.IO_IN | GLib.IO_HUP, self.obey)
        say("ready", self.server.get_bound_port())
        self.loop.run()


if __name__ == "__main__":
    Gst.init(None)
    Server(json.loads(sys.argv[1])).run()
