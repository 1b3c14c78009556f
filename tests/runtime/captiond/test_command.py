"""The command line: which configuration it makes, what it checks, the keys it gives out."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.captiond.__main__ import main, parse
from runtime.captiond.command import configuration
from runtime.captiond.config import Config, config_of
from runtime.errors import ConfigError, UsageError
from tests.imports import ROOT

DEMO = ROOT / "runtime" / "demo"


def configured(*arguments: str) -> Config:
    return configuration(parse(arguments))


def test_demo_is_the_embedded_model_on_the_looped_video() -> None:
    config = configured("--demo", "--port", "0")
    (source,) = config.sources
    assert config.engine.bundle == str(DEMO / "demo-llava")
    assert (source.name, source.uri, source.loop) == ("demo", str(DEMO / "demo.avi"), True)
    assert config.server.port == 0


def test_sources_and_prompts_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "captiond.toml"
    file.write_text('[engine]\nbundle = "b"\n[server]\nport = 1\n[[source]]\nname = "door"\nuri = "door.mp4"\n')
    assert [source.name for source in configured(str(file)).sources] == ["door"]
    assert configured(str(file)).engine.bundle == str(tmp_path / "b")
    config = configured(
        str(file), "--source", "a.mp4", "--source", "rtsp://h/1", "--prompt", "One?", "--prompt", "Two?", "--json",
        "--captions-per-s", "2", "--listen", "::1", "--log-level", "debug", "--bundle", "other",
    )  # fmt: skip
    assert [(source.name, source.uri) for source in config.sources] == [
        ("camera-1", "a.mp4"),
        ("camera-2", "rtsp://h/1"),
    ]
    assert [prompt.text for prompt in config.sources[1].prompts] == ["One?", "Two?"]
    assert config.sources[0].captions_per_s == 2.0
    assert (config.server.listen, config.server.port, config.log.level) == ("::1", 1, "debug")
    assert config.output.terminal.style == "json"
    assert config.engine.bundle == str(Path("other").absolute())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "engine.bundle is missing"),
        (["--demo", "--source", "a.mp4"], UsageError, "--demo brings its own source"),
        (["--bundle", "b", "--prompt", "x"], UsageError, "go with --source"),
        (["--bundle", "b", "--source", "gst:videotestsrc"], UsageError, "come from a configuration file"),
        (["--bundle", "b", "--source", "rtsp://u:secret@h/1"], ConfigError, "holds a user or a password"),
        (["--demo", "--port", "65536"], UsageError, "--port is 65536"),
        (["--bundle", "b", "--source", "a", "--captions-per-s", "-3"], ConfigError, "captions_per_s is -3.0"),
        (["--bundle", "b", "--source", "a", "--captions-per-s", "nan"], ConfigError, "captions_per_s is nan"),
        (["--bundle", "b", "--source", "a", "--prompt", " "], ConfigError, "text is empty"),
        (["--demo", "--listen", "0.0.0.0"], ConfigError, "there is no API key"),
        (["no-such.toml"], ConfigError, "cannot be read"),
    ],
)
def test_contradictions_are_refused_with_what_to_do(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        configured(*arguments)
    assert "secret" not in str(caught.value)


def test_check_config_names_what_is_missing_and_says_when_all_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--demo", "--check-config"]) == 0
    assert "the configuration is good: 1 sources" in capsys.readouterr().out
    assert main(["--bundle", str(tmp_path), "--source", "a.mp4", "--check-config"]) == 4
    assert "no bundle there" in capsys.readouterr().err
    text = f'[engine]\nbundle = "{DEMO}/demo-llava"\n[[source]]\nname = "a"\nuri = "rtsp://h"\n'
    file = tmp_path / "c.toml"
    file.write_text(text + 'user = "u"\npassword_file = "none"\n')
    assert main([str(file), "--check-config"]) == 3
    assert "none: the secret cannot be read" in capsys.readouterr().err
    file.write_text(text + '[server]\ncertificate_file = "c.pem"\nprivate_key_file = "k.pem"\n')
    assert main([str(file), "--check-config"]) == 3
    assert "c.pem: cannot be read" in capsys.readouterr().err
    (tmp_path / "c.pem").touch()
    assert main([str(file), "--check-config"]) == 3
    assert "k.pem: cannot be read" in capsys.readouterr().err
    file.write_text(
        text + '[[source.prompt]]\nid = "p"\ntext = "t"\nkind = "json"\n'
        'schema = {type = "object", properties = {a = {type = "string", pattern = "(?=a)b"}}}\n'
    )
    assert main([str(file), "--check-config"]) == 3
    assert "source a: prompt p: schema at #/properties/a: the pattern '(?=a)b'" in capsys.readouterr().err


def test_packages_that_are_missing_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiohttp" else found(name))
    assert main(["--demo"]) == 3
    assert capsys.readouterr().err == "error: not installed: aiohttp\nhint: pip install 'jetson-vlm[cpu,captiond]'\n"


def test_new_key_is_shown_once_and_its_lines_are_a_configuration_that_knows_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--new-key", "panel"]) == 0
    first, _, lines = capsys.readouterr().out.partition("\n\n")
    key = first.split(": ")[1]
    file = tmp_path / "keys.toml"
    file.write_text(lines.replace("server.key", "key"))
    (known,) = config_of({"server": {"keys_file": str(file)}}, tmp_path).server.keys
    assert (known.name, known.sha256, known.may) == ("panel", hashlib.sha256(key.encode()).hexdigest(), ("read",))
    assert len(key) >= 40 and key not in lines
    assert main(["--new-key", "Not a name"]) == 3


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from runtime.captiond.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'cv2', 'aiohttp', 'paho', 'onnxruntime', 'llguidance', 'prometheus_client', 'asyncio'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: vlm-captiond")
