"""Every setting of the daemon. One class is one TOML table; its fields are the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.captiond.config.setting import setting, table, tables

_TOPIC = r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*"
NAME = r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """``[[source.prompt]]``: a question asked of the frames of a source; several take turns."""

    id: str = setting(doc="name of the prompt, in events, topics and rules", pattern=NAME)
    text: str = setting(doc="the question", max_chars=8000)
    kind: str = setting("text", doc="what the answer is", choices=("text", "yes_no", "json"))
    schema: Mapping[str, object] | None = setting(None, doc="JSON schema of the answer, for kind json")
    schema_file: str | None = setting(None, doc="file that holds the JSON schema instead")
    system: str | None = setting(None, doc="system message before the question", max_chars=8000)
    every_s: float = setting(0.0, doc="seconds from one caption with this prompt to the next; 0: each turn", low=0)
    max_new_tokens: int = setting(96, doc="tokens of an answer at most", low=1, high=4096)
    temperature: float = setting(0.0, doc="0 is greedy", low=0, high=2)
    seed: int | None = setting(None, doc="makes sampling reproducible", low=0, high=2**64 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """``[[source.rule]]``: becomes active when a field of structured answers stays in a range, and says so once."""

    name: str = setting(doc="name of the rule, in events and topics", pattern=NAME)
    prompt: str = setting(doc="id of the prompt (kind yes_no or json) whose answers it reads")
    field: str = setting("answer", doc="key of the answer; a dotted path for nested objects; yes_no has 'answer'")
    op: str = setting("==", doc="comparison that makes it active", choices=("==", "!=", ">", ">=", "<", "<=", "in"))
    value: object = setting(doc="what the field is compared with; a list for 'in'")
    release: float | None = setting(None, doc="for >, >=, <, <=: inactive only beyond this value (hysteresis)")
    on_after_s: float = setting(0.0, doc="seconds that the condition must hold before it becomes active", low=0)
    off_after_s: float = setting(0.0, doc="seconds that it must not hold before it becomes inactive", low=0)
    cooldown_s: float = setting(0.0, doc="seconds after it became active before it can do so again", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """``[[source]]``: a camera, a stream, a video or pictures."""

    name: str = setting(doc="name of the source, in events, topics, URLs and metrics", pattern=NAME)
    uri: str = setting(
        doc="file path, glob or URI (file, v4l2, csi, rtsp, rtsps, http, https, rosbag, synthetic), or gst: pipeline"
    )
    user: str | None = setting(None, doc="user of the camera", max_chars=256)
    password_file: str | None = setting(None, doc="file with the camera's password", reload=True)
    prompts: tuple[PromptSettings, ...] = tables(
        PromptSettings, "prompt", doc="questions, in turn; none: the model is asked to describe", max_items=16
    )
    rules: tuple[RuleSettings, ...] = tables(RuleSettings, "rule", doc="rules on structured answers")
    captions_per_s: float = setting(0.0, doc="captions per second; 0: as many as the model can", low=0, high=120)
    priority: int = setting(
        10, doc="higher goes first, token by token, where the source has a cadence; chats have 0", low=-100, high=100
    )
    weight: float = setting(1.0, doc="share among sources of one priority", low=0, low_open=True, high=1000)
    paused: bool = setting(False, doc="begin paused: frames are taken, nothing is captioned")
    backend: str = setting("auto", doc="what decodes it", choices=("auto", "opencv", "gstreamer"))
    transport: str = setting("tcp", doc="how RTSP carries media", choices=("tcp", "udp"))
    latency_ms: int = setting(200, doc="jitter buffer of RTSP with GStreamer", low=0, high=10_000)
    fps: float | None = setting(None, doc="frame rate asked of a camera", low=0, low_open=True, high=1000)
    width: int | None = setting(None, doc="width asked of a camera, px", low=16, high=16_384)
    height: int | None = setting(None, doc="height asked of a camera, px", low=16, high=16_384)
    max_side_px: int = setting(1920, doc="larger frames are scaled down to this side", low=64, high=8192)
    max_pixels: int = setting(16_777_216, doc="larger frames are refused", low=4096, high=134_217_728)
    memory_mib: int = setting(512, doc="memory that the capture process may take", low=128, high=8192)
    open_timeout_s: float = setting(10.0, doc="seconds until the first frame", low=0.5, high=120)
    loop: bool = setting(False, doc="begin a file or a glob again at its end")
    every_frame: bool = setting(False, doc="caption each frame of a file, in order, instead of the newest one")
    scene_change: float = setting(
        0.0, doc="skip frames that differ less from the last captioned one; 0: off", low=0, high=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """``[engine]``: the model."""

    bundle: str | None = setting(None, doc="directory made by export.build_engines", reload=False)
    decoder: str = setting("auto", doc="which decoder", choices=("auto", "onnx", "cuda"), reload=False)
    device: str = setting(
        "auto", doc="of the decoder cuda", choices=("auto", "cuda_bindings", "pycuda", "emulator"), reload=False
    )
    kv: str = setting("f16", doc="values of the KV cache, decoder cuda", choices=("f16", "i8"), reload=False)
    threads: int | None = setting(
        None, doc="CPU threads; absent: what suits the machine", low=1, high=256, reload=False
    )
    verify: str = setting("cached", doc="hashes of the bundle", choices=("cached", "full", "none"), reload=False)
    chats: int = setting(
        4, doc="chat answers that are written at once, each with a KV cache", low=0, high=64, reload=False
    )
    queue: int = setting(8, doc="chat requests that may wait; one more gets 429", low=0, high=1024)
    deadline_s: float = setting(60.0, doc="seconds that one answer may take", low=1, high=3600)
    hang_s: float = setting(
        60.0, doc="seconds without any step (a picture, a token) before the engine counts as hung", low=1, high=600
    )
    load_s: float = setting(300.0, doc="seconds that loading may take", low=1, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """``[[server.key]]``: an API key, known by its hash (``vlm-captiond --new-key NAME`` makes one)."""

    name: str = setting(doc="who uses it, in logs", pattern=NAME)
    sha256: str = setting(doc="SHA-256 of the key, hexadecimal", pattern=r"[0-9a-f]{64}")
    may: tuple[str, ...] = setting(("read",), doc="what it permits", choices=("read", "chat", "control"), max_items=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """``[server]``: HTTP, the page and the API."""

    enabled: bool = setting(True, doc="serve HTTP at all", reload=False)
    listen: str = setting("127.0.0.1", doc="address; any but loopback needs a key", reload=False)
    port: int = setting(8090, doc="TCP port; 0 takes a free one", low=0, high=65535, reload=False)
    certificate_file: str | None = setting(None, doc="TLS certificate chain, PEM", reload=False)
    private_key_file: str | None = setting(None, doc="its private key, PEM", reload=False)
    hosts: tuple[str, ...] = setting((), doc="further names in the Host header that are answered")
    origins: tuple[str, ...] = setting((), doc="further origins (scheme://host:port) that browsers may come from")
    keys: tuple[KeySettings, ...] = tables(
        KeySettings, "key", doc="API keys; without any, loopback alone is served, to everyone"
    )
    keys_file: str | None = setting(None, doc="TOML file with further [[key]] tables")
    remote_images: bool = setting(False, doc="fetch http(s) image URLs of chat requests")
    private_targets: bool = setting(False, doc="let remote images and webhooks reach private and loopback addresses")
    max_body_bytes: int = setting(16_777_216, doc="of a request", low=1024, high=268_435_456)
    max_images: int = setting(8, doc="of a chat request", low=1, high=64)
    max_image_bytes: int = setting(12_582_912, doc="of one encoded image", low=1024, high=134_217_728, reload=False)
    max_image_pixels: int = setting(16_777_216, doc="of one image", low=64, high=134_217_728, reload=False)
    max_connections: int = setting(256, doc="at once", low=1, high=10_000, reload=False)
    max_watchers: int = setting(100, doc="event streams, WebSockets and live pictures at once", low=1, high=10_000)
    header_timeout_s: float = setting(10.0, doc="seconds for the head of a request", low=0.1, high=300, reload=False)
    body_timeout_s: float = setting(30.0, doc="seconds for the body of a request", low=0.1, high=600, reload=False)
    idle_timeout_s: float = setting(
        60.0, doc="seconds that an idle connection stays open", low=1, high=3600, reload=False
    )
    picture_fps: float = setting(10.0, doc="frames per second of live pictures at most", low=0.1, high=60)
    picture_side_px: int = setting(960, doc="longer side of live pictures", low=64, high=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSettings:
    """``[output.terminal]``: captions on standard output."""

    enabled: bool = setting(True, doc="write them")
    style: str = setting("auto", doc="text lines or JSON lines; auto is text", choices=("auto", "text", "json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlSettings:
    """``[output.jsonl]``: captions and rules as JSON lines in a file that rotates."""

    path: str | None = setting(None, doc="the file; absent: none is written")
    max_bytes: int = setting(16_777_216, doc="of one file, then it is rotated", low=4096, high=1_099_511_627_776)
    keep: int = setting(4, doc="rotated files that stay", low=0, high=1000)
    sync_s: float = setting(1.0, doc="seconds between two flushes to the disk", low=0, high=3600)
    events: tuple[str, ...] = setting(("caption", "rule"), doc="event types that are written", max_items=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """``[output.mqtt]``: captions, states and rules on a broker, with Home Assistant's discovery."""

    host: str | None = setting(None, doc="the broker; absent: no MQTT")
    port: int = setting(1883, doc="TCP port; 8883 is usual with TLS", low=1, high=65535)
    tls: bool = setting(False, doc="encrypt; also when ca_file is given")
    ca_file: str | None = setting(None, doc="certificates to trust, PEM; absent: the system's")
    certificate_file: str | None = setting(None, doc="client certificate, PEM")
    private_key_file: str | None = setting(None, doc="its private key, PEM")
    user: str | None = setting(None, doc="user", max_chars=256)
    password_file: str | None = setting(None, doc="file with the password")
    client_id: str | None = setting(None, doc="absent: jetson-vlm-<host>", max_chars=128)
    topic: str = setting("vlm", doc="first level of every topic", pattern=_TOPIC)
    discovery: str | None = setting(
        "homeassistant", doc="prefix of Home Assistant's discovery; empty: none", pattern=f"(?:{_TOPIC})?"
    )
    qos: int = setting(1, doc="quality of service", low=0, high=1)
    keepalive_s: int = setting(15, doc="seconds", low=5, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """``[[output.webhook]]``: events as HTTP POST."""

    name: str = setting(doc="name of the webhook, in metrics and logs", pattern=NAME)
    url: str = setting(doc="http(s) URL; private addresses need server.private_targets", max_chars=2048)
    events: tuple[str, ...] = setting(("rule",), doc="event types that are sent", max_items=16)
    secret_file: str | None = setting(None, doc="file with the key of the X-VLM-Signature header (HMAC-SHA256)")
    timeout_s: float = setting(5.0, doc="seconds for one request", low=0.1, high=60)
    retries: int = setting(3, doc="further attempts, with back-off", low=0, high=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings:
    """``[output]``: where events go, besides HTTP."""

    terminal: TerminalSettings = table(TerminalSettings, doc="standard output")
    jsonl: JsonlSettings = table(JsonlSettings, doc="a file")
    mqtt: MqttSettings = table(MqttSettings, doc="a broker")
    webhooks: tuple[WebhookSettings, ...] = tables(WebhookSettings, "webhook", doc="HTTP POST", max_items=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """``[log]``: messages on standard error."""

    level: str = setting("info", doc="least level", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file."""

    host_name: str | None = setting(
        None, doc="name of this machine in topics; absent: its host name", pattern=NAME, reload=False
    )
    run_dir: str | None = setting(
        None, doc="directory of the lock file; absent: $RUNTIME_DIRECTORY, else a directory in /tmp", reload=False
    )
    engine: EngineSettings = table(EngineSettings, doc="the model", reload=False)
    server: ServerSettings = table(ServerSettings, doc="HTTP")
    sources: tuple[SourceSettings, ...] = tables(SourceSettings, "source", doc="what is watched", max_items=32)
    output: OutputSettings = table(OutputSettings, doc="where events go")
    log: LogSettings = table(LogSettings, doc="messages")


def secret_files(config: Config) -> list[str]:
    """The files that hold secrets: passwords of cameras and the broker, keys of webhooks."""
    named = [source.password_file for source in config.sources]
    named += [config.output.mqtt.password_file, *(hook.secret_file for hook in config.output.webhooks)]
    return [file for file in named if file is not None]
