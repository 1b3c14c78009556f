"""The bundle: strict manifest, contained paths, hashes, and a writing that leaves the old bundle or none."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundle import (
    BundleError,
    Manifest,
    load_bundle,
    manifest_bytes,
    parse_manifest,
    verify,
    write,
    write_bundle,
)
from runtime.bundle.parse import parse_group
from runtime.bundle.paths import check_relative, contained_file
from runtime.errors import OutputError
from runtime.strict_json import parse_json
from tests.runtime.bundle_example import FILES, example_bundle, fill_example, manifest_json

ROOT = Path(__file__).resolve().parents[2]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with one value set; ``path`` is dotted, ``value`` ... deletes the key."""
    manifest = manifest_json()
    at: Any = manifest
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return manifest


def test_manifest_survives_writing_and_reading() -> None:
    manifest = parse_manifest(manifest_json())
    again = parse_json(manifest_bytes(manifest), name="again", error=BundleError)
    assert parse_manifest(again) == manifest
    assert again == manifest_json()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 4),
        ("schema", 1),
        ("schema", 0),
        ("schema", True),
        ("schema", "3"),
        ("surprise", 1),
        ("vision.tower.surprise", 1),
        ("prompt.image.surprise", None),
        ("vision", ...),
        ("decoder.hidden", ...),
        ("decoder.hidden", "4"),
        ("decoder.hidden", 4.0),
        ("decoder.hidden", True),
        ("decoder.hidden", 0),
        ("decoder.hidden", 10**400),
        ("decoder.rope_theta", 10**400),
        ("decoder.rope_theta", "10000"),
        ("decoder.rope_frequencies", ...),
        ("decoder.rope_frequencies", None),
        ("decoder.rope_frequencies", [1.0, 0.5]),
        ("decoder.rope_frequencies", [0.0]),
        ("decoder.rope_frequencies", []),
        ("decoder.rope_frequencies", ["1"]),
        ("quantization.method", "marlin"),
        ("decoder.kinds", []),
        ("decoder.kinds", ["tensorrt"]),
        ("decoder.onnx", None),
        ("decoder.t16", ...),
        ("decoder.kv_heads", 3),
        ("decoder.token_embeds.shape", [7, 4]),
        ("decoder.token_embeds.shape", [8, 5]),
        ("decoder.token_embeds.shape", [8]),
        ("vision.preprocess.mode", "stretch"),
        ("vision.preprocess.mean", [0.5, 0.5]),
        ("vision.preprocess.std", [0.5, 0.5, 0.0]),
        ("vision.tower.file", "other.onnx"),
        ("vision.tiling.tile_px", 33),
        ("vision.tiling.use_thumbnail", 1),
        ("vision.tiling.scales_px", [32, 64]),
        ("vision.tiling.max_tiles", 0),
        ("vision.projector.scale_inputs", [["a", "b"]]),
        ("prompt.stop_ids", []),
        ("prompt.image.end_ids", [8]),
        ("prompt.bos_ids", [-1]),
        ("prompt.roles.user", None),
        ("prompt.roles.user.open", 3),
        ("prompt.prefix", "\ud800"),
        ("prompt.special_tokens", {"<s>": "1"}),
        ("quantization.digest", "0"),
        ("checks.limits", {"tower": "1"}),
        ("files", []),
    ],
)
def test_wrong_value_is_refused_with_its_field(path: str, value: Any) -> None:
    with pytest.raises(BundleError) as refused:
        parse_manifest(changed(path, value))
    assert path.split(".")[-1] in refused.value.message
    assert refused.value.hint


def test_schema_2_is_read_as_a_bundle_without_a_cuda_decoder() -> None:
    old = changed("decoder.t16", ...)
    old["schema"] = 2
    manifest = parse_manifest(old)
    assert manifest == parse_manifest(manifest_json())
    assert manifest.decoder.t16 is None
    assert json.loads(manifest_bytes(manifest))["schema"] == 3
    with pytest.raises(BundleError, match=r"decoder\.t16 .* unknown key in schema 2"):
        parse_manifest({**manifest_json(), "schema": 2})


def cuda_manifest_json(*kinds: str) -> dict[str, Any]:
    """The example with the weights of a CUDA decoder, and without the graph where "onnx" is not among the kinds."""
    manifest = manifest_json()
    manifest["files"]["decoder/t16.safetensors"] = {"bytes": 8, "sha256": "0" * 64}
    manifest["decoder"] |= {"kinds": list(kinds), "t16": {"file": "decoder/t16.safetensors", "activations": "f16"}}
    if "onnx" not in kinds:
        manifest["decoder"]["onnx"] = None
    return manifest


@pytest.mark.parametrize("kinds", [("cuda",), ("onnx", "cuda")])
def test_weights_of_the_cuda_decoder_stand_alone_or_beside_the_graph(kinds: tuple[str, ...]) -> None:
    decoder = parse_manifest(cuda_manifest_json(*kinds)).decoder
    assert decoder.kinds == kinds
    assert decoder.t16 is not None
    assert (decoder.t16.file, decoder.t16.activations) == ("decoder/t16.safetensors", "f16")
    assert (decoder.onnx is not None) == ("onnx" in kinds)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kinds": ["onnx"]}, "decoder.t16"),
        ({"kinds": ["cuda"]}, "decoder.onnx"),
        ({"t16": None}, "decoder.t16"),
        ({"t16": {"file": "other.safetensors", "activations": "f16"}}, "decoder.t16.file"),
        ({"t16": {"file": "decoder/t16.safetensors", "activations": "f32"}}, "decoder.t16.activations"),
        ({"t16": {"file": "decoder/t16.safetensors"}}, "decoder.t16.activations"),
    ],
)
def test_forms_that_contradict_the_kinds_are_refused(change: dict[str, Any], named: str) -> None:
    manifest = cuda_manifest_json("onnx", "cuda")
    manifest["decoder"] |= change
    with pytest.raises(BundleError) as refused:
        parse_manifest(manifest)
    assert named in refused.value.message


@pytest.mark.parametrize("place", ["x-note", "vision.x-note", "prompt.image.x-note"])
def test_key_that_begins_with_x_is_allowed_anywhere(place: str) -> None:
    assert parse_manifest(changed(place, {"any": ["thing"]})).source.name == "tiny"


def test_top_level_x_keys_are_kept() -> None:
    manifest = parse_manifest(changed("x-build", {"onnx": "k"}))
    assert manifest.extra == {"x-build": {"onnx": "k"}}
    assert json.loads(manifest_bytes(manifest))["x-build"] == {"onnx": "k"}


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "/etc/passwd",
        "../other",
        "a/../../b",
        "a//b",
        "./a",
        "a\\b",
        "c:b",
        "a/./b",
        "a\0b",
        "a\nb",
        "x" * 300,
        "a/" * 9 + "b",
    ],
)
def test_path_that_could_leave_the_bundle_is_refused(relative: str) -> None:
    manifest = manifest_json()
    manifest["files"][relative] = {"bytes": 0, "sha256": "0" * 64}
    with pytest.raises(BundleError, match="files"):
        parse_manifest(manifest)
    with pytest.raises(BundleError):
        check_relative(relative, "files")


def test_too_many_files_are_refused() -> None:
    manifest = manifest_json()
    manifest["files"] |= {f"f{i}": {"bytes": 0, "sha256": "0" * 64} for i in range(600)}
    with pytest.raises(BundleError, match="files"):
        parse_manifest(manifest)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ("[" * 30 + "]" * 30, "levels"),
        ("[" * 100_000, "levels|JSON"),
        ("{", "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
    ],
)
def test_unusual_json_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        parse_json(text.encode(), name="manifest.json", error=BundleError)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BundleError, match="not valid JSON"):
        parse_json(b'{"a": "\xff"}', name="manifest.json", error=BundleError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_change_is_accepted_or_refused_with_bundle_error(data: st.DataObject) -> None:
    manifest = manifest_json()
    at: Any = manifest
    while isinstance(at, dict) and at:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or data.draw(st.booleans()):
            at[key] = data.draw(JSON)
            break
        at = at[key]
    try:
        assert isinstance(parse_manifest(manifest), Manifest)
    except BundleError as refused:
        assert refused.message


def test_group_alone_is_as_strict_as_the_whole() -> None:
    from runtime.bundle.manifest import QuantizationSection

    group = manifest_json()["quantization"]
    assert parse_group(QuantizationSection, group, "quantization").group_size == 128
    with pytest.raises(BundleError, match="quantization.bits"):
        parse_group(QuantizationSection, {**group, "bits": "4"}, "quantization")


def test_bundle_gives_its_files_and_no_others(tmp_path: Path) -> None:
    bundle = example_bundle(tmp_path / "b")
    assert bundle.file("decoder/decoder.onnx").read_bytes() == FILES["decoder/decoder.onnx"]
    (bundle.path / "stranger").write_text("x")
    for other in ("stranger", "manifest.json", "../b/tokenizer.json"):
        with pytest.raises(BundleError):
            bundle.file(other)


@pytest.mark.parametrize("mode", ["cached", "full"])
def test_flipped_byte_is_found(tmp_path: Path, mode: verify.Verify) -> None:
    path = example_bundle(tmp_path / "b").path / "decoder" / "decoder.onnx.data"
    before = path.stat()
    path.write_bytes(b"dbta")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time alone does not give it away
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data.*sha256"):
        load_bundle(tmp_path / "b", mode)


def test_missing_longer_and_shorter_files_are_found_without_hashing(tmp_path: Path) -> None:
    example_bundle(tmp_path / "b")
    path = tmp_path / "b" / "tokenizer.json"
    for content in (b"{} ", b"{"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="tokenizer.json.*bytes"):
            load_bundle(tmp_path / "b", "none")
    path.unlink()
    with pytest.raises(BundleError, match="tokenizer.json"):
        load_bundle(tmp_path / "b", "none")


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    example_bundle(tmp_path / "b")
    hashed: list[str] = []
    real = verify.sha256_file
    monkeypatch.setattr(verify, "sha256_file", lambda path: hashed.append(path.name) or real(path))
    load_bundle(tmp_path / "b")
    assert hashed == []
    (tmp_path / "b" / "tokenizer.json").touch()
    load_bundle(tmp_path / "b")
    assert hashed == ["tokenizer.json"]
    load_bundle(tmp_path / "b", "full")
    assert len(hashed) == 1 + len(FILES)


@pytest.mark.parametrize("forge", ["group-writable file", "group-writable folder", "link", "garbage", "other owner"])
def test_hash_cache_that_others_could_write_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forge: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    example_bundle(tmp_path / "b")
    (record,) = (tmp_path / "cache" / "jetson-vlm" / "hashes").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600
    if forge == "group-writable file":
        record.chmod(0o660)
    elif forge == "group-writable folder":
        record.parent.chmod(0o770)
    elif forge == "link":
        record.rename(record.with_suffix(".real"))
        record.symlink_to(record.with_suffix(".real"))
    elif forge == "garbage":
        record.write_text('["' * 9)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    hashed: list[str] = []
    real = verify.sha256_file
    monkeypatch.setattr(verify, "sha256_file", lambda path: hashed.append(path.name) or real(path))
    load_bundle(tmp_path / "b")
    assert len(hashed) == len(FILES)


def test_home_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert example_bundle(tmp_path / "b").manifest.source.name == "tiny"


def test_symbolic_links_are_refused_and_hard_links_followed(tmp_path: Path) -> None:
    example_bundle(tmp_path / "b")
    file = tmp_path / "b" / "tokenizer.json"
    file.rename(tmp_path / "outside.json")
    os.link(tmp_path / "outside.json", file)  # what installers make of package data
    load_bundle(tmp_path / "b")
    file.unlink()
    file.symlink_to(tmp_path / "outside.json")
    with pytest.raises(BundleError, match="symbolic link"):
        load_bundle(tmp_path / "b")


def test_linked_folder_inside_a_bundle_is_refused(tmp_path: Path) -> None:
    example_bundle(tmp_path / "b")
    (tmp_path / "b" / "decoder").rename(tmp_path / "elsewhere")
    (tmp_path / "b" / "decoder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="symbolic link"):
        contained_file(tmp_path / "b", "decoder/decoder.onnx")


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder"])
def test_what_is_no_bundle_is_named(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "b").write_text("x")
    elif kind == "empty folder":
        (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match="no bundle there"):
        load_bundle(tmp_path / "b")


def test_old_bundle_is_replaced_and_nothing_else_left(tmp_path: Path) -> None:
    example_bundle(tmp_path / "b")
    with pytest.raises(OutputError, match="already"):
        write_bundle(tmp_path / "b", fill_example)
    write_bundle(tmp_path / "b", renamed("second"), replace=True)
    assert load_bundle(tmp_path / "b").manifest.source.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_old_bundle_is_replaced_where_directories_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example_bundle(tmp_path / "b")
    monkeypatch.setattr(write, "_exchange", lambda first, second: False)
    write_bundle(tmp_path / "b", renamed("second"), replace=True)
    assert load_bundle(tmp_path / "b").manifest.source.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("kind", ["file", "folder with other things", "link"])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    elif kind == "link":
        (tmp_path / "target").mkdir()
        out.symlink_to(tmp_path / "target")
    else:
        out.mkdir()
        (out / "precious").write_text("x")
    with pytest.raises(OutputError):
        write_bundle(out, fill_example, replace=True)
    assert out.exists()


def test_failure_while_writing_leaves_the_old_bundle_alone(tmp_path: Path) -> None:
    example_bundle(tmp_path / "b")

    def fails(directory: Path) -> Manifest:
        fill_example(directory)
        raise OSError(28, "No space left on device", str(directory / "decoder"))

    with pytest.raises(OutputError, match="No space left") as refused:
        write_bundle(tmp_path / "b", fails, replace=True)
    assert refused.value.exit_code == 8
    assert "disk space" in (refused.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert load_bundle(tmp_path / "b", "full").manifest.source.name == "tiny"


def test_manifest_that_the_runtime_would_refuse_is_not_written(tmp_path: Path) -> None:
    def wrong(directory: Path) -> Manifest:
        manifest = fill_example(directory)
        return dataclasses.replace(manifest, decoder=dataclasses.replace(manifest.decoder, kv_heads=3))

    with pytest.raises(BundleError, match="kv_heads"):
        write_bundle(tmp_path / "b", wrong)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.bundle import write, write_bundle
from tests.runtime.bundle_example import fill_example

step = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def fill(directory):
    manifest = fill_example(directory)
    if step == "filled":
        die()
    return manifest

if step in ("_complete", "_flush_tree", "_swap_in", "_exchange"):
    setattr(write, step, die)
if step == "swapped":
    swap = write._swap_in
    write._swap_in = lambda *a: (swap(*a), die())
if step == "moved aside":
    write._exchange = lambda *a: False
    real = Path.rename
    Path.rename = lambda self, to: die() if ".building-" in self.name else real(self, to)
write_bundle(Path(sys.argv[1]), fill, replace=True)
"""


@pytest.mark.parametrize(
    "step", ["filled", "_complete", "_flush_tree", "_swap_in", "_exchange", "swapped", "moved aside"]
)
def test_kill_at_any_point_leaves_the_old_bundle_or_none(tmp_path: Path, step: str) -> None:
    out = tmp_path / "b"
    write_bundle(out, renamed("old"))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), step], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    if step == "moved aside":
        assert not out.exists()
    else:
        expected = "tiny" if step == "swapped" else "old"
        assert load_bundle(out, "full").manifest.source.name == expected
    write_bundle(out, renamed("next"), replace=True)
    assert load_bundle(out).manifest.source.name == "next"
    assert [path.name for path in tmp_path.iterdir()] == ["b"], "what the killed build left is cleared away"


def test_two_builds_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    def inner(directory: Path) -> Manifest:
        write_bundle(tmp_path / "b", renamed("inner"))
        assert directory.is_dir()
        return fill_example(directory)

    with pytest.raises(OutputError, match="already"):
        write_bundle(tmp_path / "b", inner)
    assert load_bundle(tmp_path / "b").manifest.source.name == "inner"


def renamed(name: str) -> Callable[[Path], Manifest]:
    def fill(directory: Path) -> Manifest:
        manifest = fill_example(directory)
        return dataclasses.replace(manifest, source=dataclasses.replace(manifest.source, name=name))

    return fill


def test_example_is_a_fresh_copy_each_time() -> None:
    first = manifest_json()
    kept = copy.deepcopy(first)
    first["vision"]["tower"]["file"] = "x"
    assert manifest_json() == kept
