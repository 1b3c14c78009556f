"""Finds a checkpoint's chat template and renders it in a limited child process (`export.template_child`)."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ExportError
from runtime.strict_json import parse_json, read_json

MAX_TEMPLATE_CHARS = 256 << 10
MAX_CONFIG_BYTES = 16 << 20
_HINT = "correct chat_template.jinja in the checkpoint, or name another file with --chat-template"


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What a template may use, all conversations together."""

    cpu_s: int = 10
    wall_s: int = 60
    memory_bytes: int = 768 << 20
    output_chars: int = 4 << 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """A conversation that the template refuses to render, with its reason."""

    reason: str


def find_template(folders: Sequence[Path], default: str | None = None) -> str:
    """The text of the chat template in the first folder that has one, ``default`` where none has.

    Looked for, in transformers' order: ``chat_template.jinja``, ``chat_template.json``, ``processor_config.json`` and
    ``tokenizer_config.json`` (a text, or a list whose entry "default" counts). Raises ExportError when there is no
    template at all.
    """
    for folder in folders:
        file = folder / "chat_template.jinja"
        if file.is_file() and (text := read_template(file)):
            return text
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                value = read_json(folder / name, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint=_HINT)
                template = _inside(value, folder / name)
                if template:
                    return template
    if default is not None:
        return default
    raise ExportError(
        f"{folders[0]}: the checkpoint has no chat template (chat_template.jinja, tokenizer_config.json)",
        hint="write one to chat_template.jinja, or name a file with --chat-template",
    )


def read_template(file: Path) -> str:
    """A template file's text. Raises ExportError for one that cannot be read or is too long."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ExportError(f"{file}: cannot be read: {problem}", hint=_HINT) from problem
    return _checked(text, file)


def _inside(value: Any, file: Path) -> str | None:
    template = value.get("chat_template") if isinstance(value, dict) else None
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise ExportError(f"{file}: chat_template is {type(template).__name__}, a text is needed", hint=_HINT)
    return _checked(template, file)


def _checked(text: str, file: Path) -> str:
    if len(text) > MAX_TEMPLATE_CHARS:
        raise ExportError(f"{file}: a template of {len(text)} characters, the limit is {MAX_TEMPLATE_CHARS}")
    return text


def render_template(
    template: str,
    variables: Mapping[str, Any],
    conversations: Sequence[Mapping[str, Any]],
    limits: TemplateLimits | None = None,
) -> list[str | Refusal]:
    """Each conversation's text, or the reason why the template refuses it.

    ``conversations``: ``{"messages": [...], "add_generation_prompt": bool}``. Raises ExportError when the template
    cannot be compiled, or takes more processor time, memory, wall time or output than ``limits``.
    """
    limits = limits or TemplateLimits()
    request = {
        "template": template,
        "variables": dict(variables),
        "conversations": [dict(conversation) for conversation in conversations],
        "limits": asdict(limits),
    }
    child = [sys.executable, "-I", str(Path(__file__).with_name("template_child.py")), *_jinja_folders()]
    try:
        done = subprocess.run(
            child, input=json.dumps(request).encode(), capture_output=True, timeout=limits.wall_s, check=False, env={}
        )
    except subprocess.TimeoutExpired as problem:
        raise ExportError(f"the chat template was still running after {limits.wall_s} s", hint=_HINT) from problem
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ExportError(f"the chat template took more than {limits.cpu_s} s of processor time", hint=_HINT)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ExportError(f"the chat template could not be rendered: {last[0][:300]}", hint=_HINT)
    return _answer(done.stdout)


def _answer(raw: bytes) -> list[str | Refusal]:
    answer = parse_json(raw, name="the answer of the template process", error=ExportError)
    if "error" in answer:
        raise ExportError(f"the chat template cannot be used: {answer['error']}", hint=_HINT)
    return [text if isinstance(text, str) else Refusal(text["error"]) for text in answer["rendered"]]


def _jinja_folders() -> list[str]:
    """Where jinja2 and what it imports lie, so that the isolated child finds them in any environment."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ExportError(f"{name} is needed to read chat templates", hint="pip install jinja2")
        folders.append(str(Path(spec.origin).parent.parent))
    return folders
