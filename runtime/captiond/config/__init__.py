"""The daemon's configuration: what can be set (`settings`) and how a file is read and checked (`read`)."""

from __future__ import annotations

from runtime.captiond.config.settings import (
    Config,
    EngineSettings,
    JsonlSettings,
    KeySettings,
    LogSettings,
    MqttSettings,
    OutputSettings,
    PromptSettings,
    RuleSettings,
    ServerSettings,
    SourceSettings,
    TerminalSettings,
    WebhookSettings,
)

__all__ = [
    "Config",
    "EngineSettings",
    "JsonlSettings",
    "KeySettings",
    "LogSettings",
    "MqttSettings",
    "OutputSettings",
    "PromptSettings",
    "RuleSettings",
    "ServerSettings",
    "SourceSettings",
    "TerminalSettings",
    "WebhookSettings",
]
