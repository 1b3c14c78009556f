"""Where events go besides HTTP: standard output, a file, a broker, other servers.

Each output is a task over a bounded subscription of its own; one that is stuck loses its own events and no others.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import OutputSettings, SourceSettings
from runtime.captiond.outputs.output import Output
from runtime.captiond.outputs.terminal import Terminal

__all__ = ["Output", "build"]


def build(
    settings: OutputSettings,
    host: str,
    bus: Bus,
    clock: Clock,
    allow_private: bool,
    sources: Sequence[SourceSettings],
) -> list[Output]:
    """The outputs that the settings ask for, subscribed and ready to `run`; their libraries are loaded here.

    ``host`` names this machine in topics; MQTT speaks of ``sources`` alone. ``allow_private``: webhooks may reach
    private addresses. Secrets are read from their files when they are used.
    """
    outputs: list[Output] = []
    if settings.terminal.enabled:
        outputs.append(Terminal(settings.terminal, bus, clock, sources))
    if settings.jsonl.path is not None:
        from runtime.captiond.outputs.jsonl import Jsonl

        outputs.append(Jsonl(settings.jsonl, bus, clock))
    if settings.mqtt.host is not None:
        from runtime.captiond.outputs.mqtt import Mqtt

        outputs.append(Mqtt(settings.mqtt, host, bus, clock, sources))
    if settings.webhooks:
        from runtime.captiond.outputs.webhook import Webhook

        outputs += [Webhook(hook, bus, clock, allow_private=allow_private) for hook in settings.webhooks]
    return outputs
