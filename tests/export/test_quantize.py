"""The command: options, exit codes, JSON, and what it says without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from export import quantize
from export.quantization import vision
from export.quantization.request import QuantizeRequest, QuantizeResult
from tests.models.tiny import write_nvila

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nvila(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "a.png")
    lines = [{"text": "What is this?", "images": ["a.png"]}, {"text": "Why?", "images": ["gone.png"]}, {"text": "Hi."}]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "set.jsonl"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on stdout, and stderr."""
    code = quantize.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_help_needs_no_library(tmp_path: Path) -> None:
    script = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in ('torch', 'transformers', 'numpy', 'PIL', 'models'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from export.quantize import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on where it stopped" in done.stdout and "exit codes: 0 done" in done.stdout


def test_checkpoint_is_quantised_and_described_on_stdout(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = (checkpoint, "--out", out, "--calibration", prompts, "--group-size", "32", "--no-clip")
    code, report, said = run(capsys, *given, "--dry-run")
    assert code == 0 and report["quantization"] is None and not out.exists()
    assert (report["plan"]["layers"], report["plan"]["prompts"], report["plan"]["family"]) == (2, 2, "qwen2")
    assert "gone.png: cannot be read" in said and "1 calibration prompts skipped, 2 used" in said
    assert "2 layers" in said and "MiB of memory" in said
    code, report, said = run(capsys, *given)
    assert code == 0
    assert report["out"] == str(out)
    assert report["quantization"] == json.loads((out / "quantization.json").read_text())
    assert report["quantization"]["settings"]["clip"] is False
    assert "LM head in 4 bits: KL" in said and "(taken)" in said
    code, report, _ = run(capsys, *given)
    assert code == 8 and report["hint"] == "add --force to replace it"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{checkpoint}"], 2, "there are none"),
        (["{checkpoint}", "--method", "rtn"], 2, "there are none"),
        (["{folder}/nothing", "--method", "rtn", "--head-bits", "4"], 4, "nothing"),
        (["{checkpoint}", "--method", "rtn", "--head-bits", "4", "--device", "cuda:99"], 4, "cuda:99"),
        (["{checkpoint}", "--calibration", "{folder}/nothing.txt"], 4, "cannot be read"),
    ],
)
def test_errors_have_exit_codes_and_hints(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert torch.cuda.device_count() < 99
    filled = [text.format(checkpoint=checkpoint, folder=tmp_path) for text in arguments]
    found, report, said = run(capsys, *filled, "--out", tmp_path / "out", "--group-size", "32")
    assert found == report["exit_code"] == code
    assert message in report["error"] and report["hint"]
    assert f"error: {report['error']}" in said and "hint: " in said
    assert not (tmp_path / "out").exists()


def test_wrong_options_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["c"], ["c", "--out", "o", "--group-size", "100"], ["c", "--out", "o", "--samples", "0"]):
        with pytest.raises(SystemExit) as caught:
            quantize.main(arguments)
        assert caught.value.code == 2
    assert "is below 1" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.quantization import run as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_memory", interrupted)
    given = [str(checkpoint), "--out", str(tmp_path / "o"), "--method", "rtn", "--head-bits", "4", "--group-size", "32"]
    assert quantize.main(given) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err


def test_vision_is_handed_to_its_own_part(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[QuantizeRequest] = []

    def measured(request: QuantizeRequest, progress: object) -> QuantizeResult:
        taken.append(request)
        return QuantizeResult(request.out, {"method": "smoothquant"}, {})

    monkeypatch.setattr(vision, "quantize_vision", measured)
    code, report, _ = run(
        capsys, checkpoint, "--vision", "--out", tmp_path / "o", "--calibration", prompts, "--samples", "7"
    )
    assert code == 0 and report["quantization"] == {"method": "smoothquant"}
    assert (taken[0].samples, taken[0].calibration, taken[0].checkpoint) == (7, prompts, checkpoint)
