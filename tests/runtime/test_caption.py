"""The caption command on fakes: what is printed where, exit codes, and the demo."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import caption, startup
from runtime.bundle import Bundle
from runtime.decoder import CudaOptions
from runtime.errors import EngineError, MemoryLimitError
from tests.runtime.fakes import FakeDecoder, FakeVision, fake_bundle, saying

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[[np.ndarray], int]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle and three pictures; the engines are fakes that say "a red circle"."""
    fake_bundle(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 50 * index, np.uint8)).save(tmp_path / "pictures" / f"{index}.png")
    use_engines(monkeypatch, saying("a red circle"))
    monkeypatch.setattr(caption, "DEMO_FOLDER", tmp_path / "no-demo")
    return tmp_path


def use_engines(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    def open_fake(bundle: Bundle, *, slots: int, **options: object) -> FakeDecoder:
        decoder = FakeDecoder(script=script)
        decoder.open(slots)
        return decoder

    monkeypatch.setattr(startup, "open_decoder", open_fake)
    monkeypatch.setattr(startup, "open_vision", lambda bundle, *, threads: FakeVision())


def run(files: Path, *arguments: str) -> int:
    return caption.main([str(files / "model"), "--source", str(files / "pictures"), *arguments])


def test_plain_output_has_one_line_per_frame_and_a_summary(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 4 and err == ""
    for index, line in enumerate(lines[:3]):
        assert line.startswith(f"frame {index:>5}  a red circle  (age ")
        assert line.endswith(" tok/s)")
    assert lines[3].startswith("model: 3 frames, 3 captions, ")
    assert "tokens/s, first token after " in lines[3]
    assert "\x1b" not in out


def test_json_output_is_one_object_per_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "--json", "--max-frames", "2") == 0
    *captions, summary = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [(item["type"], item["frame"], item["text"]) for item in captions] == [
        ("caption", 0, "a red circle"),
        ("caption", 1, "a red circle"),
    ]
    assert {"source", "skipped", "t_capture_ns", "t_capture_kind", "age_first_ms", "age_last_ms"} <= set(captions[0])
    assert captions[0]["finish_reason"] == "stop" and captions[0]["timings"]["total_ms"] > 0
    assert (summary["type"], summary["bundle"], summary["frames"], summary["captions"]) == ("summary", "model", 2, 2)


def test_truth_is_scored_over_all_and_over_unambiguous_frames(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = [("a red circle", False), ("a blue star", False), ("a red circle", True)]
    lines = [json.dumps({"frame": i, "caption": text, "ambiguous": vague}) for i, (text, vague) in enumerate(truth)]
    (files / "truth.jsonl").write_text("\n".join(lines))
    assert run(files, "--truth", str(files / "truth.jsonl")) == 0
    out = capsys.readouterr().out.splitlines()
    assert "truth: a blue star" in out[1] and "truth" not in out[0]
    assert out[3].endswith("exact 2/3 (66.7 %), unambiguous 1/2 (50.0 %)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "dim"), [("", True), ("1", False)])
def test_terminal_gets_the_text_token_by_token_and_no_color_is_honoured(
    files: Path, monkeypatch: pytest.MonkeyPatch, no_color: str, dim: bool
) -> None:
    writes: list[str] = []
    terminal = Terminal()
    monkeypatch.setattr(terminal, "write", lambda text: writes.append(text) or len(text))
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert run(files, "--max-frames", "1") == 0
    assert [text for text in writes if len(text) == 1] == list("a red circle")
    assert ("\x1b[2m" in "".join(writes)) is dim


def test_control_characters_of_a_model_do_not_reach_the_terminal(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_engines(monkeypatch, saying("a\x1b[31mred\r\n\x9bcircle\u202e"))
    assert run(files, "--max-frames", "1") == 0
    assert "a[31mred circle  (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "a bundle is missing"),
        (["model"], 2, "--source is missing"),
        (["model", "--source", "x", "--demo"], 2, "brings its own models"),
        (["model", "--source", "x", "--max-frames", "0"], 2, "--max-frames is 0"),
        (["model", "--source", "x", "--temperature", "-1"], 2, "temperature is -1"),
        (["model", "--source", "x", "--truth", "nothing.jsonl"], 3, "nothing.jsonl: cannot be read"),
        (["nothing", "--source", "x"], 4, "no bundle there"),
        (["model", "--source", "nothing.mp4"], 5, "there is no such file"),
        (["--demo"], 2, "no bundle for 'all'"),
    ],
)
def test_errors_are_a_message_and_a_hint_with_the_documented_exit_code(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(files)
    assert caption.main(arguments) == code
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and "Traceback" not in err
    assert "captions" not in out or "0 captions" in out


def test_unknown_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        caption.main(["--no-such-flag"])
    assert caught.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("device lost"), 4), (MemoryLimitError("7 GiB of 4"), 6), (KeyboardInterrupt(), 130)],
)
def test_failures_while_running_end_with_a_summary_and_their_exit_code(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    answers = saying("a red circle")

    def fail_in_the_second_caption(rows: np.ndarray) -> int:
        image = rows[rows[:, 2] == -1]  # its second column is the mean of the picture, -1 for the first and black one
        if image[0][1] > -0.9:
            raise error
        return answers(rows)

    use_engines(monkeypatch, fail_in_the_second_caption)
    assert run(files) == code
    assert "model: 2 frames, 1 captions" in capsys.readouterr().out


def test_sigterm_closes_everything_and_exits_with_143(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminate(rows: np.ndarray) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        return 70

    use_engines(monkeypatch, terminate)
    assert run(files) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_output_that_takes_no_more_ends_with_8(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(files) == 8
        monkeypatch.undo()


def test_demo_captions_every_frame_of_the_embedded_video_with_each_model(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = files / "demo"
    for name in ("demo-llava", "demo-nvila"):
        shutil.copytree(files / "model", demo / name)
    shutil.copy(files / "pictures" / "1.png", demo / "demo.png")
    (demo / "demo_truth.jsonl").write_text('{"frame": 0, "caption": "a red circle", "ambiguous": false}\n')
    monkeypatch.setattr(caption, "DEMO_FOLDER", demo)
    assert caption.main(["--demo"]) == 0
    summaries = [line for line in capsys.readouterr().out.splitlines() if line.startswith("demo-")]
    assert [line.split(":")[0] for line in summaries] == ["demo-llava", "demo-nvila"]
    assert all(line.endswith("exact 1/1 (100.0 %), unambiguous 1/1 (100.0 %)") for line in summaries)
    assert caption.main(["--demo", "nvila", "--prompt", "How many?"]) == 0
    out = capsys.readouterr().out
    assert "demo-llava" not in out and "exact" not in out  # another question has no truth


def test_help_needs_neither_numpy_nor_an_engine() -> None:
    code = "import sys\nfrom runtime import caption\ntry:\n    caption.main(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "assert not {'numpy', 'onnxruntime', 'tokenizers', 'PIL', 'cv2'} & set(sys.modules), sorted(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: vlm-caption")


def test_closed_pipe_ends_without_a_traceback(files: Path) -> None:
    """``vlm-caption … | head -1``: the reader goes away while the command writes."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from runtime import caption, startup
from tests.runtime.fakes import FakeDecoder, FakeVision, saying
decoder = FakeDecoder(script=saying("a red circle"))
startup.open_decoder = lambda bundle, *, slots, **options: decoder.open(slots) or decoder
startup.open_vision = lambda bundle, **options: FakeVision()
sys.exit(caption.main(sys.argv[1:]))
"""
    source = "synthetic://?frames=2000&width=32&height=32"
    command = [sys.executable, "-c", code, str(files / "model"), "--source", source, "--every-frame"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 8
    err = process.stderr.read()
    process.stderr.close()
    assert err.startswith("error: standard output takes no more") and "Traceback" not in err and "Exception" not in err


def test_settings_of_the_cuda_decoder_reach_the_session(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    opened = startup.open_decoder
    monkeypatch.setattr(
        startup, "open_decoder", lambda bundle, **options: seen.append(options) or opened(bundle, **options)
    )
    assert run(files, "--kv", "i8", "--embeddings", "f16", "--no-graphs", "--device", "emulator") == 0
    assert seen[0]["cuda"] == CudaOptions("emulator", "i8", "f16", graphs=False)
    assert run(files) == 0
    assert seen[1]["cuda"] == CudaOptions()
