"""A configuration file as `Config`. Errors are ConfigError."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.captiond.config.check import check_config
from runtime.captiond.config.complete import complete
from runtime.captiond.config.settings import Config
from runtime.captiond.config.tables import table_of
from runtime.captiond.config.toml_file import read_toml


def read_config(path: Path) -> Config:
    """Read and check a file; paths in it are relative to its folder."""
    return config_of(read_toml(path), path.parent)


def config_of(values: Mapping[str, object], folder: Path) -> Config:
    """The configuration that a parsed TOML file holds, with the files that it names read."""
    config = complete(table_of(Config, values, ""), folder)
    check_config(config)
    return config
