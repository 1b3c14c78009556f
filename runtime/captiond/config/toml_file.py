"""Reads TOML and secrets from files, with limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_SECRET_BYTES = 4096


def read_toml(path: Path) -> dict[str, object]:
    """The values of a TOML file of at most 1 MiB. Raises ConfigError that names the file and the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise ConfigError(
            f"{path}: cannot be read: {problem.strerror or problem}", hint="name an existing TOML file"
        ) from problem
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    toml = _toml()
    try:
        parsed: dict[str, object] = toml.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, RecursionError) as problem:
        raise ConfigError(f"{path}: not TOML in UTF-8: {type(problem).__name__}") from problem
    except toml.TOMLDecodeError as problem:
        raise ConfigError(f"{path}: not valid TOML: {problem}") from problem
    return parsed


def read_secret(path: str | Path) -> str:
    """The secret that a file holds: its first line, without the line break.

    Raises ConfigError that names the file and never its content.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_SECRET_BYTES + 1)
    except OSError as problem:
        raise ConfigError(
            f"{path}: the secret cannot be read: {problem.strerror or problem}",
            hint="the daemon's user must be able to read it",
        ) from problem
    try:
        text = raw.decode("utf-8").split("\n", 1)[0].rstrip("\r")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the secret is not text in UTF-8") from None
    if not text or len(raw) > MAX_SECRET_BYTES or any(ord(sign) < 32 or ord(sign) == 127 for sign in text):
        raise ConfigError(f"{path}: one line of 1 to {MAX_SECRET_BYTES} printable characters is needed")
    return text


def _toml() -> Any:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib
