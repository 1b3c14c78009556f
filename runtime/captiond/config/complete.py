"""Reads the files that a configuration names: JSON schemas and API keys. Secrets stay in their files until used."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.captiond.config.setting import tables
from runtime.captiond.config.settings import Config, KeySettings, PromptSettings, ServerSettings, SourceSettings
from runtime.captiond.config.tables import table_of
from runtime.captiond.config.toml_file import read_toml
from runtime.errors import ConfigError
from runtime.strict_json import read_json

MAX_SCHEMA_BYTES = 65_536
_DESCRIBE = PromptSettings(id="describe", text="Describe the image.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """The file that ``server.keys_file`` names."""

    keys: tuple[KeySettings, ...] = tables(KeySettings, "key", doc="API keys")


def complete(config: Config, folder: Path) -> Config:
    """``config`` with absolute paths, schemas and keys from files, and a prompt for every source.

    Raises ConfigError naming the file.
    """
    sources = tuple(_source(source, folder) for source in config.sources)
    webhooks = tuple(replace(hook, secret_file=_path(hook.secret_file, folder)) for hook in config.output.webhooks)
    jsonl = replace(config.output.jsonl, path=_path(config.output.jsonl.path, folder))
    mqtt = config.output.mqtt
    mqtt = replace(
        mqtt,
        ca_file=_path(mqtt.ca_file, folder),
        certificate_file=_path(mqtt.certificate_file, folder),
        private_key_file=_path(mqtt.private_key_file, folder),
        password_file=_path(mqtt.password_file, folder),
    )
    output = replace(config.output, jsonl=jsonl, mqtt=mqtt, webhooks=webhooks)
    engine = replace(config.engine, bundle=_path(config.engine.bundle, folder))
    return replace(
        config,
        engine=engine,
        server=_server(config.server, folder),
        sources=sources,
        output=output,
        run_dir=_path(config.run_dir, folder),
    )


def _source(source: SourceSettings, folder: Path) -> SourceSettings:
    prompts = tuple(_prompt(prompt, f"source {source.name}: prompt {prompt.id}", folder) for prompt in source.prompts)
    return replace(source, prompts=prompts or (_DESCRIBE,), password_file=_path(source.password_file, folder))


def _prompt(prompt: PromptSettings, where: str, folder: Path) -> PromptSettings:
    if prompt.schema_file is None:
        return prompt
    if prompt.schema is not None:
        raise ConfigError(f"{where}: schema and schema_file are both given", hint="name one of them")
    schema = read_json(folder / prompt.schema_file, max_bytes=MAX_SCHEMA_BYTES, error=ConfigError)
    if not isinstance(schema, dict):
        raise ConfigError(f"{where}: {prompt.schema_file} is no JSON object: {json.dumps(schema)[:40]}")
    return replace(prompt, schema=schema, schema_file=None)


def _server(server: ServerSettings, folder: Path) -> ServerSettings:
    server = replace(
        server,
        certificate_file=_path(server.certificate_file, folder),
        private_key_file=_path(server.private_key_file, folder),
    )
    if server.keys_file is None:
        return server
    path = folder / server.keys_file
    holder = table_of(KeyFile, read_toml(path), str(path))
    return replace(server, keys=server.keys + holder.keys, keys_file=None)


def _path(given: str | None, folder: Path) -> str | None:
    return None if given is None else str((folder / Path(given).expanduser()).absolute())
