"""Renders a chat template in a process of its own, with limits that are set before the template is seen.

Run as a file by `export.chat_template`, never imported: stdin is one JSON object ``{"template", "variables",
"conversations": [{"messages", "add_generation_prompt"}], "limits"}``, stdout one JSON object ``{"rendered": [text or
{"error"}]}`` or ``{"error"}``. The environment is transformers' own (same options, filters, globals), inside Jinja's
immutable sandbox. Only the standard library and jinja2 are used.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from typing import Any


def main() -> int:
    sys.path[:0] = sys.argv[1:]  # where the parent found jinja2
    request = json.load(sys.stdin)
    limits = request["limits"]
    import jinja2

    environment = _environment()
    for trial in ("{{ 1 }}", "{{ raise_exception('trial') }}", "{% if %}"):  # imports all while files can be opened
        with contextlib.suppress(jinja2.TemplateError):
            environment.from_string(trial).render()
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    json.dump(_answer(environment, request), sys.stdout)
    return 0


def _answer(environment: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        template = environment.from_string(request["template"])
    except MemoryError:
        return {"error": "the memory limit was reached"}
    except Exception as problem:  # noqa: BLE001 - whatever a template raises is handed to the parent
        return {"error": f"{type(problem).__name__}: {problem}"[:500]}
    rendered: list[Any] = []
    left = request["limits"]["output_chars"]
    for conversation in request["conversations"]:
        text = _render(template, request["variables"], conversation)
        left -= len(text) if isinstance(text, str) else 0
        if left < 0:
            return {"error": f"more than {request['limits']['output_chars']} characters were rendered"}
        rendered.append(text)
    return {"rendered": rendered}


def _render(template: Any, variables: dict[str, Any], conversation: dict[str, Any]) -> Any:
    try:
        text = template.render(**variables, **conversation)
        text.encode("utf-8")
    except MemoryError:
        return {"error": "the memory limit was reached"}
    except Exception as problem:  # noqa: BLE001 - whatever a template raises is handed to the parent
        return {"error": f"{type(problem).__name__}: {problem}"[:500]}
    return text


def _environment() -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class GenerationBlock(jinja2.ext.Extension):
        """``{% generation %}`` marks what the assistant says; for rendering it is transparent."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} begins with an underscore")
            super().__setitem__(name, value)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = Namespace
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    import jinja2

    raise jinja2.TemplateError(f"the template writes the current date ({layout}), which a bundle would freeze")


if __name__ == "__main__":
    sys.exit(main())
