"""Chat templates are rendered in a limited child, and a hostile one ends in a typed error soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export import template_child
from export.chat_template import (
    MAX_TEMPLATE_CHARS,
    Refusal,
    TemplateLimits,
    find_template,
    read_template,
    render_template,
)
from runtime.errors import ExportError

pytest.importorskip("jinja2")

CONVERSATION = {"messages": [{"role": "user", "content": "hello"}], "add_generation_prompt": True}
TIGHT = TemplateLimits(cpu_s=1, wall_s=30, output_chars=10_000)


def render(template: str, limits: TemplateLimits = TIGHT) -> str | Refusal:
    (text,) = render_template(template, {"bos_token": "<s>"}, [CONVERSATION], limits)
    return text


def test_child_is_a_file_of_its_own() -> None:
    assert Path(template_child.__file__).name == "template_child.py"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] }}{% endfor %}", "<s>user:hello"),
        ("{% if add_generation_prompt %}A{% endif %}", "A"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{% generation %}hi{% endgeneration %}", "hi"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{{ {'b': 'é', 'a': 1} | tojson }}", '{"b": "é", "a": 1}'),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
    ],
)
def test_templates_render_as_in_transformers(template: str, text: str) -> None:
    assert render(template) == text


@pytest.mark.torch
def test_rendering_equals_that_of_transformers() -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = (
        "{%- set ns = namespace(s='') -%}{% for m in messages %}\n  {% if m.role != 'x' %}\n [{{ m.role | upper }}]"
        "{{ m.content | trim }}{{ m | tojson(indent=2) }}{% endif %}{% endfor %}{{ '\\n' }}{# note #}\n"
    )
    expected, _ = utils.render_jinja_template([CONVERSATION["messages"]], chat_template=template)
    assert render(template) == expected[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/passwd' %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '\\ud800' }}",
        "{{ raise_exception('only for others') }}",
        "{{ strftime_now('%d %b %Y') }}",
    ],
)
def test_what_a_template_may_not_do_is_refused_with_its_reason(template: str) -> None:
    refused = render(template)
    assert isinstance(refused, Refusal)
    assert refused.reason


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        ("{{ 'x' * 20000 }}", "characters"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "cannot be used"),
    ],
)
def test_template_that_cannot_be_used_ends_in_an_export_error(template: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as refused:
        render(template)
    assert "--chat-template" in (refused.value.hint or "")


def test_wall_time_is_limited_too() -> None:
    with pytest.raises(ExportError, match="still running"):
        render("{{ 1 }}", TemplateLimits(cpu_s=1, wall_s=0))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_template_is_found_in_the_order_of_transformers(tmp_path: Path) -> None:
    llm, root = tmp_path / "llm", tmp_path
    write(llm / "tokenizer_config.json", {"chat_template": "from the config"})
    write(root / "chat_template.jinja", "from the root")
    assert find_template([llm, root]) == "from the config"
    write(llm / "chat_template.json", {"chat_template": "from the json"})
    assert find_template([llm, root]) == "from the json"
    write(llm / "chat_template.jinja", "from the file")
    assert find_template([llm, root]) == "from the file"


def test_default_of_several_templates_counts(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write(tmp_path / "tokenizer_config.json", {"chat_template": several})
    assert find_template([tmp_path]) == "d"


def test_missing_wrong_and_endless_templates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no chat template") as refused:
        find_template([tmp_path])
    assert "--chat-template" in (refused.value.hint or "")
    write(tmp_path / "tokenizer_config.json", {"chat_template": 7})
    with pytest.raises(ExportError, match="a text is needed"):
        find_template([tmp_path])
    write(tmp_path / "long.jinja", "x" * (MAX_TEMPLATE_CHARS + 1))
    with pytest.raises(ExportError, match="characters"):
        read_template(tmp_path / "long.jinja")
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="cannot be read"):
        read_template(tmp_path / "binary.jinja")
