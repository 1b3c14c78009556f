"""Memory arithmetic, the refusal that comes before anything is allocated, and what this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.budget import Budget, available_memory, check_budget, memory_budget
from runtime.bundle import parse_manifest
from runtime.errors import MemoryLimitError
from tests.runtime.bundle_example import manifest_json

MIB = 1 << 20


def test_cache_is_keys_and_values_of_every_layer_and_position() -> None:
    manifest = manifest_json()
    manifest["decoder"] |= {"layers": 3, "kv_heads": 2, "heads": 4, "head_dim": 8, "max_seq_len": 100}
    manifest["decoder"]["rope_frequencies"] = [1.0, 0.1, 0.01, 0.001]
    one = memory_budget(parse_manifest(manifest), kind="onnx")
    assert one.kv_cache_bytes == 2 * 3 * 2 * 8 * 100 * 4
    assert memory_budget(parse_manifest(manifest), kind="onnx", slots=3).kv_cache_bytes == 3 * one.kv_cache_bytes
    assert memory_budget(parse_manifest(manifest), kind="cuda").kv_cache_bytes * 2 == one.kv_cache_bytes


def test_weights_count_as_stored_and_the_token_table_is_mapped() -> None:
    manifest = manifest_json()
    manifest["files"]["decoder/decoder.onnx.data"]["bytes"] = 1000
    manifest["files"]["decoder/token_embeds.bin"]["bytes"] = 77
    manifest["files"]["vision_tower.onnx"]["bytes"] = 500
    manifest["files"]["vision_projector.onnx"]["bytes"] = 50
    budget = memory_budget(parse_manifest(manifest))
    assert (budget.decoder_bytes, budget.mapped_bytes, budget.vision_bytes) == (1000, 77, 1100)
    parts = budget.decoder_bytes + budget.kv_cache_bytes + budget.vision_bytes + budget.activation_bytes
    assert budget.total_bytes == parts + budget.process_bytes, "the mapped table is not in the total"
    manifest["vision"]["tower"]["precision"] = "int8"
    assert memory_budget(parse_manifest(manifest)).vision_bytes == 550


def test_a_head_in_f16_counts_as_widened() -> None:
    manifest = manifest_json()
    stored = memory_budget(parse_manifest(manifest)).decoder_bytes
    manifest["quantization"]["head_bits"] = 16
    assert memory_budget(parse_manifest(manifest)).decoder_bytes == stored + 2 * 8 * 4


def test_more_tiles_at_once_take_more() -> None:
    manifest = manifest_json()
    manifest["vision"]["tower"] |= {"patches_per_tile": 1024, "channels": 1152}
    manifest["vision"]["tiling"]["patches_per_side"] = 32
    one, four = (memory_budget(parse_manifest(manifest), tiles_at_once=n).activation_bytes for n in (1, 4))
    assert four == 4 * one > 1024 * 1024 * 4


def budget(**parts: int) -> Budget:
    names = ("decoder_bytes", "kv_cache_bytes", "vision_bytes", "activation_bytes", "process_bytes", "mapped_bytes")
    return Budget(**{name: parts.get(name, MIB) for name in names})


def test_budget_that_fits_exactly_is_accepted() -> None:
    check_budget(budget(), budget().total_bytes)
    with pytest.raises(MemoryLimitError):
        check_budget(budget(), budget().total_bytes - 1)


@pytest.mark.parametrize(
    ("part", "named", "hint"),
    [
        ("kv_cache_bytes", "the KV cache", "--max-seq-len"),
        ("vision_bytes", "the vision graphs", "--vision-precision"),
        ("decoder_bytes", "the decoder's weights", "smaller model"),
    ],
)
def test_refusal_names_the_largest_part_both_sizes_and_a_way_out(part: str, named: str, hint: str) -> None:
    with pytest.raises(MemoryLimitError) as refused:
        check_budget(budget(**{part: 900 * MIB}), 100 * MIB)
    assert named in refused.value.message
    assert "904 MiB" in refused.value.message
    assert "100 MiB" in refused.value.message
    assert hint in (refused.value.hint or "")
    assert refused.value.exit_code == 6


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n")
    assert available_memory(tmp_path) == 5000 * 1024


def test_control_group_of_version_2_lowers_it(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemAvailable: 5000 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "1000000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "900000\n")
    write(tmp_path, "sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 50000\n")
    assert available_memory(tmp_path) == 150000
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    assert available_memory(tmp_path) == 5000 * 1024


def test_control_group_of_version_1_lowers_it(tmp_path: Path) -> None:
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", "1200000\n")
    assert available_memory(tmp_path) == 0


def test_machine_that_tells_nothing_is_not_judged(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_this_machine_tells() -> None:
    assert (available_memory() or 0) > MIB
