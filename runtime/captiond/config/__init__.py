"""The daemon's configuration: what can be set (`settings`), how a file is read and checked, what a new one changes."""

from __future__ import annotations

from runtime.captiond.config.changes import reloadable
from runtime.captiond.config.read import config_of, read_config
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
    secret_files,
)
from runtime.captiond.config.toml_file import read_secret

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
    "config_of",
    "read_config",
    "read_secret",
    "reloadable",
    "secret_files",
]
