"""The command: stages, reuse, refusals, exit codes, and a build that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export import build as build_module
from export import build_engines
from export.build import BuildRequest, build
from export.estimate import check_disk
from export.fingerprint import BUNDLE_CODE, TRACING_CODE, Fingerprint, code_digest
from export.manifest_groups import default_max_seq_len
from export.progress import Progress
from export.prompt_export import PromptRequest
from export.stages import BUILD_KEY
from runtime.bundle import load_bundle
from runtime.errors import BundleError, EngineError, ExportError, OutputError, UsageError
from tests.export.small_checkpoints import put, store_graphs, write_llava, write_nvila

pytest.importorskip("jinja2")
pytest.importorskip("onnx")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_graphs(write_llava(tmp_path_factory.mktemp("checkpoints") / "tiny-llava"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on stdout, and stderr."""
    code = build_engines.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_bundle_is_built_without_torch_from_stored_graphs(checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in ('torch', 'transformers', 'einops', 'onnxruntime', 'PIL'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from export.build_engines import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "b"
    done = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), "--out", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: ")
    assert "stored graphs" in done.stderr
    manifest = load_bundle(out, "full").manifest
    assert manifest.source.name == "tiny-llava"
    assert manifest.checks.tower_max_error == 1e-6
    assert manifest.checks.prompt_conversations == 50
    assert set(manifest.files) == {
        *("tokenizer.json", "vision_tower.onnx", "vision_projector.onnx"),
        *("decoder/decoder.onnx", "decoder/decoder.onnx.data", "decoder/token_embeds.bin"),
    }


def test_nvila_bundle_says_how_it_sees_and_how_it_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = store_graphs(write_nvila(tmp_path / "n"))
    code, _, _ = run(capsys, root, "--out", tmp_path / "b", "--max-seq-len", "64")
    manifest = load_bundle(tmp_path / "b").manifest
    assert code == 0
    assert manifest.vision.projector.scale_inputs == (("area_h_0", "area_w_0"), ("area_h_1", "area_w_1"))
    assert manifest.vision.tiling_spec().mode == "dynamic_s2"
    assert manifest.decoder.max_seq_len == 64
    assert len(manifest.prompt.image.end_ids) == 1, "the line break that the family embeds after an image"
    assert manifest.prompt.context_tokens == 128, "the tokenizer's limit is below the decoder's"


def test_second_run_changes_nothing_and_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, checkpoint, "--out", tmp_path / "b")
    before = (tmp_path / "b").stat().st_ino
    code, result, err = run(capsys, checkpoint, "--out", tmp_path / "b")
    assert code == 0
    assert [stage["action"] for stage in result["stages"]] == ["unchanged", "unchanged"]
    assert "unchanged" in err
    assert (tmp_path / "b").stat().st_ino == before
    _, result, _ = run(capsys, checkpoint, "--out", tmp_path / "b", "--force")
    assert [stage["action"] for stage in result["stages"]] == ["stored graphs", "quantised", "skipped"]


def test_changed_setting_redoes_its_stage_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, _ = run(capsys, checkpoint, "--out", tmp_path / "b")
    code, second, _ = run(capsys, checkpoint, "--out", tmp_path / "b", "--group-size", "32")
    assert code == 0
    assert [stage["action"] for stage in second["stages"]] == ["unchanged", "quantised", "skipped"]
    assert first["quantization_digest"] != second["quantization_digest"]
    manifest = load_bundle(tmp_path / "b", "full").manifest
    assert manifest.quantization.group_size == 32
    assert set(manifest.extra[BUILD_KEY]) == {"onnx", "weights"}


def test_damaged_bundle_is_built_anew(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, checkpoint, "--out", tmp_path / "b")
    (tmp_path / "b" / "vision_tower.onnx").write_bytes(b"towes")
    with pytest.raises(BundleError):
        load_bundle(tmp_path / "b")
    code, _, _ = run(capsys, checkpoint, "--out", tmp_path / "b", "--force")
    assert code == 0
    assert load_bundle(tmp_path / "b", "full").file("vision_tower.onnx").read_bytes() == b"tower"


def test_dry_run_writes_nothing_and_tells_sizes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, err = run(capsys, checkpoint, "--out", tmp_path / "b", "--dry-run")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert [stage["action"] for stage in result["stages"]] == ["stored graphs", "quantised"]
    _, built, _ = run(capsys, checkpoint, "--out", tmp_path / "b")
    decoder = sum(
        entry.bytes for name, entry in load_bundle(tmp_path / "b").manifest.files.items() if "decoder" in name
    )
    assert abs(result["estimated_bytes"] - decoder) < 0.2 * decoder, "the stored graphs of this test are a few bytes"
    assert "MB" in err
    assert built["bundle"]


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose heads the CUDA kernels take."""
    root = write_llava(tmp_path_factory.mktemp("checkpoints") / "wide", heads=2, kv_heads=1, head_dim=64)
    return store_graphs(root)


def decoder_files(bundle: Path) -> set[str]:
    return {name for name in load_bundle(bundle).manifest.files if name.startswith("decoder/")}


def test_auto_writes_both_decoders_where_the_kernels_take_them_and_says_where_not(
    checkpoint: Path, wide_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, err = run(capsys, wide_heads, "--out", tmp_path / "wide", "--max-seq-len", "64")
    assert code == 0
    manifest = load_bundle(tmp_path / "wide").manifest
    assert manifest.decoder.kinds == ("onnx", "cuda")
    assert manifest.decoder.t16 is not None
    assert manifest.decoder.t16.activations == "f16"
    assert "(onnx and cuda)" in err
    written = sum(manifest.files[name].bytes for name in decoder_files(tmp_path / "wide"))
    assert abs(result["estimated_bytes"] - written) < 0.1 * written
    _, _, err = run(capsys, checkpoint, "--out", tmp_path / "narrow")
    assert load_bundle(tmp_path / "narrow").manifest.decoder.kinds == ("onnx",)
    assert "without the CUDA decoder: head_dim is 32" in err


def test_the_form_and_its_activations_are_part_of_what_a_stage_depends_on(
    wide_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    made = []
    for arguments in (("cuda",), ("cuda",), ("cuda", "--activations", "bf16"), ("onnx",), ("both",), ("auto",)):
        code, result, _ = run(capsys, wide_heads, "--out", out, "--max-seq-len", "64", "--decoder", *arguments)
        assert code == 0
        made.append((result["stages"][1]["action"], decoder_files(out), load_bundle(out).manifest.decoder))
    actions, files, decoders = zip(*made, strict=True)
    assert actions == ("quantised", "unchanged", "quantised", "quantised", "quantised", "unchanged")
    t16, table = "decoder/t16.safetensors", "decoder/token_embeds.bin"
    graph = {"decoder/decoder.onnx", "decoder/decoder.onnx.data"}
    assert files[0] == files[2] == {t16, table}
    assert files[3] == {*graph, table}
    assert files[4] == files[5] == {*graph, t16, table}
    assert decoders[0].onnx is None
    assert decoders[3].t16 is None
    assert [decoder.t16.activations for decoder in (decoders[0], decoders[2], decoders[4])] == ["f16", "bf16", "f16"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--decoder", "cuda"], 4, "--decoder cuda: head_dim is 32, its kernels take 64 and 128"),
        (["--decoder", "both"], 4, "--decoder both: head_dim is 32"),
        (["--stage", "plans"], 4, "TensorRT"),
        (["--max-seq-len", "4000"], 4, "max_seq_len"),
        (["--chat-template", "/nowhere.jinja"], 4, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str
) -> None:
    found, result, err = run(capsys, checkpoint, "--out", tmp_path / "b", *arguments)
    assert found == code == result["exit_code"]
    assert reason in result["error"]
    assert reason in err
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_have_code_2(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, checkpoint)[0] == 2
    for arguments in (["--group-size", "7"], ["--max-seq-len", "0"], ["--stage", "everything"]):
        with pytest.raises(SystemExit) as left:
            build_engines.main([str(checkpoint), "--out", "b", *arguments])
        assert left.value.code == 2


def test_typed_errors_of_the_requests() -> None:
    with pytest.raises(UsageError):
        build(BuildRequest(Path("x"), None), Progress())
    with pytest.raises(EngineError):
        build(BuildRequest(Path("x"), Path("y"), stage="plans"), Progress())


def test_bundle_of_another_checkpoint_and_other_folders_are_not_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = store_graphs(write_nvila(tmp_path / "other"))
    run(capsys, checkpoint, "--out", tmp_path / "b")
    code, result, _ = run(capsys, other, "--out", tmp_path / "b")
    assert (code, "tiny-llava" in result["error"]) == (8, True)
    assert run(capsys, other, "--out", tmp_path / "b", "--force")[0] == 0
    assert run(capsys, checkpoint, "--out", other, "--force")[0] == 8
    assert (other / "config.json").is_file()


def test_weights_stage_without_graphs_names_the_stage_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_llava(tmp_path / "l")
    code, result, _ = run(capsys, root, "--out", tmp_path / "b", "--stage", "weights")
    assert code == 4
    assert "--stage onnx" in result["hint"]


def test_changed_weights_and_changed_code_make_stored_graphs_stale(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "l"
    shutil.copytree(checkpoint, root)
    weights = ("--stage", "weights", "--dry-run", "--out", tmp_path / "b")
    assert run(capsys, root, *weights)[0] == 0
    from export import stages

    monkeypatch.setattr(stages, "code_digest", lambda sources: "other code")
    assert run(capsys, root, *weights)[0] == 4
    monkeypatch.undo()
    data = bytearray((root / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (root / "model.safetensors").write_bytes(data)
    assert run(capsys, root, *weights)[0] == 4


def test_damaged_stored_graphs_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "l"
    shutil.copytree(checkpoint, root)
    (root / "onnx" / "vision_tower.onnx").write_bytes(b"towes")
    code, result, _ = run(capsys, root, "--out", tmp_path / "b")
    assert code == 4
    assert "vision_tower.onnx" in result["error"]
    assert "--save-traced" in result["hint"]


def test_full_disk_is_told_before_and_while_writing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutputError, match="are free"):
        check_disk(tmp_path / "deep" / "down" / "b", 10**18)

    def full(*arguments: Any, **settings: Any) -> Any:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(build_module, "write_decoder", full)
    code, result, _ = run(capsys, checkpoint, "--out", tmp_path / "b")
    assert code == 8
    assert "No space left" in result["error"]
    assert list(tmp_path.iterdir()) == []


KILL = """
import os, signal, sys
from export import build
from export.build_engines import main
def die(*arguments, **settings):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    while True:
        signal.pause()
if sys.argv[2] == "weights":
    from export.decoder import t16
    t16.T16File.finish = die
else:
    build.write_decoder = die
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("place", ["decoder", "weights"])
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_ended_build_leaves_the_old_bundle(
    wide_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, place: str
) -> None:
    """Before the decoder, and when the weights of the CUDA decoder lack nothing but their digest."""
    checkpoint, out = wide_heads, tmp_path / "b"
    run(capsys, checkpoint, "--out", out)
    digest = load_bundle(out).manifest.quantization.digest
    command = [sys.executable, "-c", KILL, name, place, str(checkpoint), "--out", str(out), "--group-size", "64"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert ended.returncode == code
    assert load_bundle(out, "full").manifest.quantization.digest == digest
    left = [path.name for path in tmp_path.iterdir() if path != out]
    assert bool(left) == (name == "SIGKILL"), "only a killed build leaves its temporary folder"
    assert run(capsys, checkpoint, "--out", out, "--group-size", "64")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_help_loads_nothing_heavy() -> None:
    script = "import sys\nfrom export.build_engines import main\ntry:\n    main(['--help'])\n"
    script += "except SystemExit:\n    print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--vision-precision" in done.stdout
    loaded = done.stdout.splitlines()[-1]
    assert not any(f"'{name}'" in loaded for name in ("numpy", "onnx", "torch", "tokenizers", "jinja2"))


def test_template_file_replaces_the_checkpoints_own(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    put(tmp_path / "t.jinja", words + "{% if add_generation_prompt %}<assistant>{% endif %}")
    code, _, _ = run(capsys, checkpoint, "--out", tmp_path / "b", "--chat-template", tmp_path / "t.jinja")
    assert code == 0
    prompt = load_bundle(tmp_path / "b").manifest.prompt
    assert (prompt.roles.user.open, prompt.roles.user.close) == ("<user>", "</s>")
    assert PromptRequest.__dataclass_fields__["template_file"].default is None


def test_fingerprint_follows_files_settings_and_code(tmp_path: Path) -> None:
    put(tmp_path / "a", "1")
    put(tmp_path / "b", "2")
    files = [tmp_path / "a", tmp_path / "b"]
    one = Fingerprint(tmp_path, files)
    assert one.of(files, 128) == Fingerprint(tmp_path, reversed(files)).of(files, 128)
    assert len({one.of(files, 128), one.of(files, 64), one.of(files[:1], 128)}) == 3
    put(tmp_path / "b", "3")
    assert Fingerprint(tmp_path, files).of(files, 128) != one.of(files, 128)
    with pytest.raises(ExportError, match="cannot be read"):
        Fingerprint(tmp_path, [tmp_path / "missing"])
    assert len({code_digest(TRACING_CODE), code_digest(BUNDLE_CODE)}) == 2
    assert all((ROOT / package).is_dir() for package in (*TRACING_CODE, *BUNDLE_CODE))
    for package, patterns in TRACING_CODE.items():
        assert all((ROOT / package / pattern).is_file() for pattern in patterns), "a renamed file would drop out"


def test_default_cache_length_is_bounded() -> None:
    assert default_max_seq_len(512) == 512
    assert default_max_seq_len(32768) == 4096


def test_signal_handler_is_put_back(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(capsys, checkpoint)
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.getpid()
