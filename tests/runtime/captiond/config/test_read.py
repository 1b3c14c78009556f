"""Configuration files: what is taken, what is refused, and how the refusal reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.config import Config, SourceSettings, config_of, read_config, read_secret, reloadable
from runtime.captiond.config.setting import key_of, rules_of
from runtime.captiond.config.settings import PromptSettings
from runtime.captiond.config.tables import limits, table_of
from runtime.errors import ConfigError

DIGEST = hashlib.sha256(b"secret").hexdigest()
FULL = f"""
host_name = "robot"
[engine]
bundle = "model"
chats = 2
[server]
listen = "0.0.0.0"
port = 9000
[[server.key]]
name = "panel"
sha256 = "{DIGEST}"
may = ["read", "chat"]
[[source]]
name = "door"
uri = "rtsp://10.0.0.2/main"
user = "viewer"
password_file = "door.password"
captions_per_s = 2
[[source.prompt]]
id = "person"
text = "Is there a person?"
kind = "yes_no"
[[source.prompt]]
id = "count"
text = "How many people are there?"
kind = "json"
schema = {{ type = "object", properties = {{ people = {{ type = "integer" }} }}, required = ["people"] }}
[[source.rule]]
name = "crowd"
prompt = "count"
field = "people"
op = ">="
value = 5
release = 3
[output.jsonl]
path = "captions.jsonl"
[[output.webhook]]
name = "alarm"
url = "https://hooks.example/vlm"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "captiond.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_whole_file_is_read_with_paths_relative_to_its_folder(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, FULL))
    door = config.sources[0]
    assert (config.host_name, config.engine.chats, config.server.port) == ("robot", 2, 9000)
    assert config.engine.bundle == str(tmp_path / "model")
    assert (door.user, door.password_file) == ("viewer", str(tmp_path / "door.password"))
    assert [prompt.kind for prompt in door.prompts] == ["yes_no", "json"]
    assert door.rules[0].value == 5 and door.rules[0].release == 3.0
    assert config.server.keys[0].may == ("read", "chat")
    assert config.output.webhooks[0].events == ("rule",)
    assert config.output.jsonl.path == str(tmp_path / "captions.jsonl")


def test_empty_file_is_all_defaults_and_a_source_without_prompts_is_described(tmp_path: Path) -> None:
    assert config_of({}, tmp_path) == Config()
    config = config_of({"source": [{"name": "a", "uri": "film.mp4"}]}, tmp_path)
    assert [prompt.text for prompt in config.sources[0].prompts] == ["Describe the image."]


REFUSED = [
    ("sorce = 1", "sorce", "did you mean 'source'?"),
    ("[server]\nprot = 1", "server.prot", "did you mean 'port'?"),
    ("[server]\nport = 'x'", "server.port is 'x'", "whole number"),
    ("[server]\nport = true", "server.port is True", "whole number"),
    ("[server]\nport = 1.5", "server.port is 1.5", "whole number"),
    ("[server]\nport = 70000", "server.port is 70000", "from 0 to 65535"),
    ("[engine]\ndeadline_s = nan", "engine.deadline_s", "a number"),
    ("[engine]\ndecoder = 'gpu'", "engine.decoder is 'gpu'", "auto, onnx, cuda"),
    ('[engine]\nbundle = "a\\u0000b"', "engine.bundle", "NUL"),
    ("engine = 3", "engine is 3", "a table"),
    ("source = 3", "source is 3", "array of tables"),
    ("[[source]]\nname = 'a'", "source[0].uri is missing", "uri:"),
    ("[[source]]\nname = 'A b'\nuri = 'x'", "source[0].name is 'A b'", "must match"),
    ("[[source]]\nname = 'a'\nuri = ''", "source a: uri is empty", ""),
    ("[[source]]\nname = 'a'\nuri = 'x'\n[[source]]\nname = 'a'\nuri = 'y'", "'a' is given twice", ""),
    ("[[source]]\nname = 'a'\nuri = 'rtsp://u:p@h/1'", "holds a user or a password", "password_file"),
    ("[[source]]\nname = 'a'\nuri = 'x'\nuser = 'u'", "user and password_file belong together", ""),
    ("[[source]]\nname = 'a'\nuri = 'x'\nweight = 0", "weight is 0", "above 0"),
    ("[[source]]\nname = 'a'\nuri = 'rtsp://h/1'\nevery_frame = true", "every_frame is for files", ""),
    ("[[source]]\nname = 'a'\nuri = 'csi://0'\nbackend = 'opencv'", "needs gstreamer", ""),
    ("[server]\nlisten = '0.0.0.0'", "server.listen is '0.0.0.0'", "--new-key"),
    ("[server]\ncertificate_file = 'c'", "belong together", ""),
    ("[server]\norigins = ['panel']", "'panel' is no origin", ""),
    ("[[source]]\nname = 'a'\nuri = 'ftp://h/a.mp4'", "begins with ftp://", "rtsp, rtsps"),
    ("[[source]]\nname = 'a'\nuri = 'rtsp:///main'", "names no host", ""),
    ("[[source]]\nname = 'a'\nuri = 'RTSP://h:99999/main'", "names no host, or no port", ""),
    ("[output.mqtt]\ndiscovery = 'ha/#'", "output.mqtt.discovery is 'ha/#'", ""),
    ("[output.mqtt]\npassword_file = 'p'", "without user", ""),
    ("[output.jsonl]\nevents = ['captions']", "names 'captions'", "caption"),
    ("[[output.webhook]]\nname = 'w'\nurl = 'ftp://h'", "no http or https URL", ""),
    ("[[output.webhook]]\nname = 'w'\nurl = 'http://u:p@h/'", "holds a user or a password", ""),
]


@pytest.mark.parametrize(("text", "message", "more"), REFUSED, ids=[case[0][:40] for case in REFUSED])
def test_refusal_names_the_setting_its_value_and_what_is_allowed(
    tmp_path: Path, text: str, message: str, more: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text))
    assert message in caught.value.message
    assert more in str(caught.value)


SOURCE = "[[source]]\nname = 'a'\nuri = 'x'\n[[source.prompt]]\nid = 'p'\ntext = 't'\n"
RULES = [
    ("kind = 'json'\n", "needs a schema"),
    ("schema = { type = 'object' }\n", "is of kind text and has a schema"),
    ("[[source.rule]]\nname = 'r'\nprompt = 'q'\nvalue = 1", "there is no prompt 'q'; there are p"),
    ("[[source.rule]]\nname = 'r'\nprompt = 'p'\nvalue = 1", "prompt p gives text"),
    ("kind = 'yes_no'\n[[source.rule]]\nname = 'r'\nprompt = 'p'\nop = '>'\nvalue = 'x'", "> compares numbers"),
    ("kind = 'yes_no'\n[[source.rule]]\nname = 'r'\nprompt = 'p'\nop = 'in'\nvalue = 'x'", "'in' needs a list"),
    ("kind = 'yes_no'\n[[source.rule]]\nname = 'r'\nprompt = 'p'\nvalue = 'x'\nrelease = 1", "release goes with"),
    (
        "kind = 'yes_no'\n[[source.rule]]\nname = 'r'\nprompt = 'p'\nop = '>'\nvalue = 1\nrelease = 2",
        "could never be released",
    ),
    (
        "kind = 'yes_no'\n[[source.rule]]\nname = 'r'\nprompt = 'p'\nop = '<='\nvalue = 1\nrelease = 0",
        "could never be released",
    ),
]


@pytest.mark.parametrize(("text", "message"), RULES, ids=[case[1] for case in RULES])
def test_prompts_and_rules_that_do_not_fit_together_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="source a: ") as caught:
        read_config(write(tmp_path, SOURCE + text))
    assert message in caught.value.message


def test_schema_and_keys_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "people.json").write_text('{"type": "object"}')
    (tmp_path / "keys.toml").write_text(f'[[key]]\nname = "k"\nsha256 = "{DIGEST}"\n')
    text = SOURCE + "kind = 'json'\nschema_file = 'people.json'\n[server]\nlisten = '::'\nkeys_file = 'keys.toml'\n"
    config = read_config(write(tmp_path, text))
    assert config.sources[0].prompts[0].schema == {"type": "object"}
    assert [key.name for key in config.server.keys] == ["k"]
    (tmp_path / "people.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(ConfigError, match=r"people\.json.*twice"):
        read_config(write(tmp_path, text))


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"captiond\.toml: not valid TOML: .*line 2"):
        read_config(write(tmp_path, "[engine]\nbundle = \n"))
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        read_config(tmp_path / "none.toml")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        read_config(large)
    (tmp_path / "latin.toml").write_bytes(b'host_name = "\xe9"')
    with pytest.raises(ConfigError, match="not TOML in UTF-8"):
        read_config(tmp_path / "latin.toml")


@pytest.mark.parametrize("raw", [b"", b"\nsecond line", b"x" * 5000, b"a\x1bb", b"\xff\xfe"])
def test_secret_that_is_none_is_refused_without_being_shown(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read_secret(path)
    assert "secret" in caught.value.message and "xxx" not in str(caught.value)


def test_secret_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"pass word\r\nrest")
    assert read_secret(path) == "pass word"


def test_reload_keeps_what_needs_a_restart_and_names_it(tmp_path: Path) -> None:
    running = read_config(write(tmp_path, FULL))
    changed = FULL.replace("port = 9000", "port = 9001").replace("captions_per_s = 2", "captions_per_s = 4")
    wanted = read_config(write(tmp_path, changed.replace('bundle = "model"', 'bundle = "other"')))
    merged, kept = reloadable(running, wanted)
    assert kept == ["engine.bundle", "server.port"]
    assert (merged.engine, merged.server) == (running.engine, running.server)
    assert merged.sources[0].captions_per_s == 4.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([key_of(item) for item in dataclasses.fields(SourceSettings)]), json_values)
def test_any_value_of_a_source_setting_is_taken_or_refused_by_name(key: str, value: object) -> None:
    table = {"name": "a", "uri": "film.mp4", key: value}
    try:
        read = table_of(SourceSettings, table, "source")
    except ConfigError as error:
        assert error.message.startswith(f"source.{key}")
    else:
        item = next(item for item in dataclasses.fields(SourceSettings) if key_of(item) == key)
        if rules_of(item).item is None:
            assert getattr(read, item.name) == value


def test_every_setting_has_words_and_ranges_can_be_said() -> None:
    def settings_of(cls: type) -> list[str]:
        said = []
        for item in dataclasses.fields(cls):
            rules = rules_of(item)
            assert rules.doc, f"{cls.__name__}.{item.name}"
            said.append(limits(rules))
            if rules.item is not None:
                said += settings_of(rules.item)
        return said

    said = settings_of(Config)
    assert "from 0 to 65535" in said and "above 0 to 1000" in said and "from 0" in said


def test_schema_in_toml_equals_the_same_schema_in_json(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    inline = {"id": "p", "text": "t", "kind": "json", "schema": schema}
    from_file = {"id": "p", "text": "t", "kind": "json", "schema_file": "s.json"}
    configs = [
        config_of({"source": [{"name": "a", "uri": "x", "prompt": [prompt]}]}, tmp_path)
        for prompt in (inline, from_file)
    ]
    assert configs[0] == configs[1]
    assert isinstance(configs[0].sources[0].prompts[0], PromptSettings)
