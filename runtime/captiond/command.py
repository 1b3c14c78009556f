"""What the command line asks for: the configuration of this run, a check of it, a new key, or the daemon itself."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path

from runtime.captiond.config import Config, SourceSettings, config_of, read_config, read_secret, secret_files
from runtime.captiond.config.check import check_config
from runtime.captiond.config.tables import table_of
from runtime.errors import ConfigError, InputError, UsageError

_PACKAGES = ("aiohttp", "prometheus_client", "cv2")
_DEMO = Path(__file__).resolve().parent.parent / "demo"


def run(options: argparse.Namespace) -> int:
    """Do what the options say. Raises VlmError."""
    if options.new_key is not None:
        return _new_key(options.new_key)
    config = configuration(options)
    if options.check_config:
        return _check(config)
    _require_packages()
    from runtime.captiond.daemon import Daemon
    from runtime.captiond.frugal import give_memory_back
    from runtime.captiond.logs import configure_logs

    give_memory_back()
    redactor = configure_logs(config.log.level, sys.stderr)
    daemon = Daemon(config, lambda: configuration(options), os.environ, redactor)
    return asyncio.run(daemon.run())


def configuration(options: argparse.Namespace) -> Config:
    """The file's settings with those of the command line. Raises ConfigError, UsageError."""
    path = None if options.config is None else Path(options.config)
    config = config_of({}, Path.cwd()) if path is None else read_config(path)
    if options.demo and options.source:
        raise UsageError("--demo brings its own source, and --source names another", hint="name one of them")
    sources = _sources(options)
    bundle = str(Path(options.bundle).absolute()) if options.bundle else config.engine.bundle
    bundle = str(_DEMO / "demo-llava") if options.demo and bundle is None else bundle
    server, terminal = config.server, config.output.terminal
    if options.listen is not None:
        server = replace(server, listen=options.listen)
    if options.port is not None:
        server = replace(server, port=_port(options.port))
    if options.json:
        terminal = replace(terminal, style="json")
    config = replace(
        config,
        engine=replace(config.engine, bundle=bundle),
        server=server,
        output=replace(config.output, terminal=terminal),
        sources=sources or config.sources,
        log=replace(config.log, level=options.log_level or config.log.level),
    )
    check_config(config)
    if config.engine.bundle is None:
        raise ConfigError("engine.bundle is missing", hint="vlm-captiond --bundle DIR --source URI, or --demo")
    return config


def _sources(options: argparse.Namespace) -> tuple[SourceSettings, ...]:
    uris = [str(_DEMO / "demo.avi")] if options.demo else options.source or []
    if not uris and (options.prompt or options.loop or options.captions_per_s is not None):
        raise UsageError("--prompt, --loop and --captions-per-s go with --source", hint="or set them in the file")
    texts = options.prompt or ["Describe the image."]
    for uri in uris:
        if uri.startswith("gst:"):
            raise UsageError("gst: pipelines come from a configuration file", hint='[[source]] with uri = "gst:…"')
    return tuple(
        table_of(  # what a file may not say the command line may not either
            SourceSettings,
            {
                "name": "demo" if options.demo else f"camera-{number}",
                "uri": uri,
                "prompt": [{"id": f"prompt-{place}", "text": text} for place, text in enumerate(texts, 1)],
                "loop": options.loop or options.demo,
                "captions_per_s": options.captions_per_s or 0.0,
            },
            uri,
        )
        for number, uri in enumerate(uris, 1)
    )


def _port(port: int) -> int:
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; allowed is from 0 to 65535")
    return port


def _check(config: Config) -> int:
    """Check what the settings name: bundle, secrets, certificates. Raises what is wrong."""
    from runtime.bundle import load_bundle

    load_bundle(str(config.engine.bundle), "none")
    for file in secret_files(config):
        read_secret(file)
    server, mqtt = config.server, config.output.mqtt
    pairs = (server.certificate_file, server.private_key_file, mqtt.certificate_file, mqtt.private_key_file)
    for name in (*pairs, mqtt.ca_file):
        if name is not None and not os.access(name, os.R_OK):
            raise ConfigError(f"{name}: cannot be read", hint="check the path and its permissions")
    for source in config.sources:
        _check_schemas(source)
    sys.stdout.write(f"the configuration is good: {len(config.sources)} sources, bundle {config.engine.bundle}\n")
    return 0


def _check_schemas(source: SourceSettings) -> None:
    """Refuse a schema that the engine would refuse at each caption; its length in tokens is the engine's to judge."""
    from runtime.constraints import json_schema

    for prompt in source.prompts:
        if prompt.schema is not None:
            try:
                json_schema(prompt.schema)
            except InputError as problem:
                where = f"source {source.name}: prompt {prompt.id}"
                raise ConfigError(f"{where}: {problem.message}", hint=problem.hint) from problem


def _require_packages() -> None:
    """Name what is missing, rather than fail at the first import of it."""
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}", hint="pip install 'jetson-vlm[cpu,captiond]'")


def _new_key(name: str) -> int:
    """Print a random key of 256 bits and the lines that make it known; the key itself is kept nowhere."""
    key = "vlm-" + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    config_of({"server": {"key": [{"name": name, "sha256": digest}]}}, Path.cwd())  # refuses a bad name
    sys.stdout.write(
        f"key (shown once): {key}\n\n"
        f'[[server.key]]\nname = "{name}"\nsha256 = "{digest}"\nmay = ["read"]  # and "chat", "control"\n'
    )
    return 0
