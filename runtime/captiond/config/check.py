"""What settings mean together. Each check names the settings that contradict each other. Raises ConfigError."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from runtime.captiond.config.settings import (
    Config,
    MqttSettings,
    PromptSettings,
    RuleSettings,
    ServerSettings,
    SourceSettings,
    WebhookSettings,
)
from runtime.captiond.events import EVENT_TYPES
from runtime.errors import ConfigError

_ORDERED = (">", ">=", "<", "<=")
_NETWORK = ("rtsp", "rtsps", "http", "https")
_SCHEMES = ("file", "v4l2", "csi", *_NETWORK, "rosbag", "synthetic")
_EVENT_NAMES = tuple(kind.type for kind in EVENT_TYPES)


def check_config(config: Config) -> None:
    """Refuse a configuration whose parts do not fit together."""
    _unique("source", (source.name for source in config.sources))
    _unique("output.webhook", (hook.name for hook in config.output.webhooks))
    for source in config.sources:
        _check_source(source)
    if config.server.enabled:
        _check_server(config.server)
    _check_mqtt(config.output.mqtt)
    _check_events("output.jsonl.events", config.output.jsonl.events)
    for hook in config.output.webhooks:
        _check_webhook(hook)


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine reach a listening address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def check_prompts(where: str, prompts: Sequence[PromptSettings]) -> None:
    """Refuse prompts of one source that do not fit together; ``where`` names the source."""
    _unique(f"{where}: prompt", (prompt.id for prompt in prompts))
    for prompt in prompts:
        _check_prompt(f"{where}: prompt {prompt.id}", prompt)


def _check_source(source: SourceSettings) -> None:
    where = f"source {source.name}"
    _check_uri(where, source.uri)
    _check_scheme(where, source.uri)
    if (source.user is None) != (source.password_file is None):
        raise ConfigError(f"{where}: user and password_file belong together, one of them is missing")
    if (source.width is None) != (source.height is None):
        raise ConfigError(f"{where}: width and height belong together, one of them is missing")
    if source.every_frame and source.uri.startswith(("rtsp", "http", "v4l2", "csi", "gst:", "/dev/")):
        raise ConfigError(f"{where}: every_frame is for files, a camera does not wait")
    if source.backend == "opencv" and source.uri.startswith(("gst:", "csi:")):
        raise ConfigError(f"{where}: backend is 'opencv', and {source.uri.split(':')[0]}: needs gstreamer")
    _unique(f"{where}: rule", (rule.name for rule in source.rules))
    check_prompts(where, source.prompts)
    for rule in source.rules:
        _check_rule(f"{where}: rule {rule.name}", rule, source.prompts)


def _check_uri(where: str, uri: str) -> None:
    if not uri.strip():
        raise ConfigError(f"{where}: uri is empty")
    if uri.startswith("gst:") or "://" not in uri:
        return
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise ConfigError(
            f"{where}: uri holds a user or a password",
            hint="set user, and password_file to a file that holds the password alone",
        )


def _check_scheme(where: str, uri: str) -> None:
    """Refuse what no attempt could ever open; whether anything is there is found out later, and again."""
    scheme, found, _ = uri.partition("://")
    if uri.startswith("gst:") or not found:
        return
    if scheme.lower() not in _SCHEMES:
        raise ConfigError(f"{where}: uri begins with {scheme}://; allowed are {', '.join(_SCHEMES)}, gst: and paths")
    if scheme.lower() in _NETWORK:
        try:
            parts = urlsplit(uri)
            named = parts.port != 0 and bool(parts.hostname)
        except ValueError:
            named = False
        if not named:
            raise ConfigError(f"{where}: uri names no host, or no port from 1 to 65535")


def _check_prompt(where: str, prompt: PromptSettings) -> None:
    if not prompt.text.strip():
        raise ConfigError(f"{where}: text is empty")
    if (prompt.kind == "json") != (prompt.schema is not None):
        problem = "needs a schema" if prompt.kind == "json" else f"is of kind {prompt.kind} and has a schema"
        raise ConfigError(f"{where} {problem}", hint='kind = "json" with schema or schema_file')


def _check_rule(where: str, rule: RuleSettings, prompts: Iterable[PromptSettings]) -> None:
    kinds = {prompt.id: prompt.kind for prompt in prompts}
    if rule.prompt not in kinds:
        raise ConfigError(f"{where}: there is no prompt {rule.prompt!r}; there are {', '.join(kinds) or 'none'}")
    if kinds[rule.prompt] == "text":
        raise ConfigError(f"{where}: prompt {rule.prompt} gives text; a rule reads kind yes_no or json")
    number = isinstance(rule.value, (int, float)) and not isinstance(rule.value, bool)
    if rule.op in _ORDERED and not number:
        raise ConfigError(f"{where}: value is {rule.value!r}; {rule.op} compares numbers")
    if rule.op == "in" and not isinstance(rule.value, list):
        raise ConfigError(f"{where}: value is {rule.value!r}; 'in' needs a list")
    if rule.release is not None:
        _check_release(where, rule)


def _check_release(where: str, rule: RuleSettings) -> None:
    if rule.op not in _ORDERED:
        raise ConfigError(f"{where}: release goes with {', '.join(_ORDERED)}, op is {rule.op}")
    assert isinstance(rule.value, (int, float)) and rule.release is not None
    rising = rule.op.startswith(">")
    if (rule.release > rule.value) if rising else (rule.release < rule.value):
        side = "above" if rising else "below"
        raise ConfigError(f"{where}: release {rule.release} lies {side} value {rule.value}: it could never be released")


def _check_server(server: ServerSettings) -> None:
    if (server.certificate_file is None) != (server.private_key_file is None):
        raise ConfigError("server: certificate_file and private_key_file belong together, one of them is missing")
    _unique("server.key", (key.name for key in server.keys))
    if not server.keys and not is_loopback(server.listen):
        raise ConfigError(
            f"server.listen is {server.listen!r}, which other machines reach, and there is no API key",
            hint="make one with vlm-captiond --new-key NAME, or listen on 127.0.0.1",
        )
    for origin in server.origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
            raise ConfigError(f"server.origins: {origin!r} is no origin", hint='for instance "https://panel.lan:8443"')


def _check_mqtt(mqtt: MqttSettings) -> None:
    if (mqtt.certificate_file is None) != (mqtt.private_key_file is None):
        raise ConfigError("output.mqtt: certificate_file and private_key_file belong together, one of them is missing")
    if mqtt.password_file is not None and mqtt.user is None:
        raise ConfigError("output.mqtt: password_file is given without user")


def _check_webhook(hook: WebhookSettings) -> None:
    where = f"output.webhook {hook.name}"
    _check_uri(where, hook.url)
    if urlsplit(hook.url).scheme not in ("http", "https") or not urlsplit(hook.url).hostname:
        raise ConfigError(f"{where}: url is no http or https URL with a host")
    _check_events(f"{where}: events", hook.events)


def _check_events(where: str, events: Iterable[str]) -> None:
    for name in events:
        if name not in _EVENT_NAMES:
            raise ConfigError(f"{where} names {name!r}; allowed are {', '.join(_EVENT_NAMES)}")


def _unique(where: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{where}: the name {name!r} is given twice")
        seen.add(name)
